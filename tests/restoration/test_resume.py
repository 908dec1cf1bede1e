"""A training killed with SIGKILL at a random moment and resumed ends bit for bit where an undisturbed one ends."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fewstep import recipes
from fewstep.train.fit import main as fit

ITERATIONS = 160
RECIPES = [
    "restoration/resshift_small",
    "restoration/resshift_small_onestep",
    "restoration/resshift_small_sinsr",
    "toy/ring_flow",
]
# Every 7 iterations: no whole number of passes over the data (3 batches), nor a validation (50), ends at most checkpoints.
CALLBACKS = """[{class_path: fewstep.train.ema.EMA, init_args: {decay: 0.99}},
                {class_path: fewstep.train.checkpoints.Checkpoints, init_args: {every: 7}}]"""


def options(recipe: str, run: Path, teacher: Path | None) -> list[str]:
    args = [
        "fit",
        f"--config={recipes.find(recipe)}",
        f"--model.init_args.iterations={ITERATIONS}",
        f"--trainer.default_root_dir={run}",
        "--trainer.logger=false",
        "--trainer.val_check_interval=50",
        f"--trainer.callbacks={CALLBACKS}",
    ]
    if recipe.startswith("toy"):
        return [*args, "--data.init_args.batch_size=16"]
    args += ["--data.init_args.batch_size=2", "--data.init_args.crop=32", "--data.init_args.validate_on=1"]
    if teacher is not None:
        pool = "--model.init_args.pool.init_args"
        return [*args, f"--model.init_args.teacher.init_args.source={teacher}", f"{pool}.size=6", f"{pool}.fresh=1"]
    return [*args, "--model.init_args.student.init_args.denoiser.init_args.net.init_args={width: 8, blocks: 1}"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teacher")
    fit([*options("restoration/resshift_small", run, None), "--model.init_args.iterations=2"])
    return run / "last"


def tensors(tree: object, at: str = "") -> dict[str, object]:
    """Every leaf of a checkpoint by its place."""
    if isinstance(tree, dict):
        return {k: v for key, sub in tree.items() for k, v in tensors(sub, f"{at}/{key}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for i, sub in enumerate(tree) for k, v in tensors(sub, f"{at}/{i}").items()}
    return {at: tree}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_run_resumes_bit_for_bit(recipe: str, teacher: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    source = teacher if recipe.endswith(("onestep", "sinsr")) else None
    fit(options(recipe, whole, source))

    command = [sys.executable, "-c", "from fewstep.cli import main; main()", *options(recipe, broken, source)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    checkpoint = broken / "last.ckpt"
    while not checkpoint.exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.005)
    time.sleep(random.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = torch.load(checkpoint, weights_only=True)["state_dict"]["iteration"].item()
    assert 0 < reached < ITERATIONS
    fit([*options(recipe, broken, source), f"--ckpt_path={checkpoint}"])

    a, b = (torch.load(run / "last.ckpt", weights_only=True) for run in (whole, broken))
    averages = [k for k in a["callbacks"] if k.startswith("EMA")]
    assert averages
    for part in ("state_dict", "optimizer_states"):
        compare(a[part], b[part])
    compare(a["callbacks"][averages[0]], b["callbacks"][averages[0]])
    one, two = ((run / "last" / "model.safetensors").read_bytes() for run in (whole, broken))
    assert one == two


def compare(a: object, b: object) -> None:
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key], key
