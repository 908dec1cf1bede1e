"""Every shipped recipe: it trains, says what it is, and resumes bit for bit after SIGKILL."""

import importlib
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fewstep import recipes
from fewstep.artifacts import load, read_config
from fewstep.cli import main
from fewstep.generator import Generator
from fewstep.train.fit import instantiate

# Those of the other domains are trained in their own tests.
ALL = sorted(n for n in recipes.available() if n.startswith(("toy/", "digits/", "restoration/")))
TEXT = {name: recipes.find(name).read_text() for name in ALL}
RUNS = {re.search(r"default_root_dir: (runs/\w+)", TEXT[name]).group(1): name for name in ALL}
# The recipes whose runs a recipe reads.
NEEDS = {name: sorted({RUNS[run] for run in re.findall(r"source: (runs/\w+)/", TEXT[name])}) for name in ALL}
SMALL = ["denoiser.init_args.net.init_args.width=8", "denoiser.init_args.net.init_args.blocks=1", "steps=2"]


def options(name, folder):
    """Two iterations of a recipe on something small."""
    given = ["--model.init_args.iterations=2", "--data.init_args.batch_size=4", "--trainer.accelerator=cpu"]
    given += ["--trainer.val_check_interval=1"]
    if name.startswith("restoration"):
        given += [f"--data.init_args.folder={folder / 'pictures'}", "--data.init_args.crop=16"]
        if not NEEDS[name]:
            given += [f"--model.init_args.student.init_args.{v}" for v in SMALL]
    if "fewstep.digits.Digits" in TEXT[name]:
        given += ["--data.init_args.held_out=16"]
    if "ratio:" in TEXT[name]:
        given += ["--model.init_args.ratio=1"]
    if "group:" in TEXT[name]:
        given += ["--model.init_args.group=2"]
    if "degradation:" in TEXT[name]:
        given += [f"--model.init_args.{v}" for v in ("degradation=1", "kept=1", "backtracking=0")]
    if name == "digits/digits_teacher":
        given += ["--model.init_args.student.init_args.steps=2"]
    return given


def steps_of(name, given):
    """How many steps the model of a recipe samples in: its own, those of the student that it describes, or one."""
    last = [v.partition("=")[2] for v in given if ".steps=" in v]
    own = yaml.safe_load(TEXT[name])["model"]["init_args"]
    student = own["student"].get("init_args", {}) if isinstance(own.get("student"), dict) else {}
    return int(last[-1]) if last else own.get("steps") or student.get("steps", 1)


def kinds_other_than_named(model, args):
    """Argument -> the class it has in the model, where the recipe names another one (jsonargparse may take it for a dataclass)."""
    parts = {k: v for k, v in args.items() if isinstance(v, dict) and "class_path" not in v}
    inside = {k: kinds_other_than_named(getattr(model, k), v) for k, v in parts.items()}
    if any(inside.values()):
        return inside
    args = {k: v for k, v in args.items() if k not in parts}
    named = {k: v["class_path"] if isinstance(v, dict) else v for k, v in args.items() if k != "schedule"}
    classes = {
        k: get_class(v)
        for k, v in named.items()
        if isinstance(v, str) and v.startswith("fewstep.") and hasattr(model, k)
    }
    return {
        k: type(getattr(model, k))
        for k, c in classes.items()
        if isinstance(c, type) and not isinstance(getattr(model, k), c)
    }


def get_class(path):
    """What has this full name."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """name -> the folder in which it has been trained, after the recipes that it needs, and whether its student changed."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 24, 3), dtype=np.uint8)).save(folder / f"pictures/{i}.png")
    changed = {}

    def trained(name):
        if name not in changed:
            for other in NEEDS[name]:
                trained(other)
            if name == "digits/digits_kd":
                pairs = ["pairs", "runs/digits_teacher/last", "-n", "264", "--steps", "2", "--out", "runs/digits_pairs"]
                with pytest.raises(SystemExit, match="^0$"):
                    main(pairs)
            cli = instantiate(recipes.find(name), options(name, folder))
            assert kinds_other_than_named(cli.model, yaml.safe_load(TEXT[name])["model"]["init_args"]) == {}
            before = {k: v.clone() for k, v in cli.model.student.state_dict().items()}
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
            changed[name] = any(not torch.equal(v, before[k]) for k, v in cli.model.student.state_dict().items())
        return folder / "runs" / name.split("/")[1], changed[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # recipes name folders relative to it
        trained.folder = folder
        yield trained


def test_there_are_recipes_for_teachers_and_students():
    assert sum(map(bool, NEEDS.values())) >= 20
    assert not all(NEEDS.values())


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_trains(run, name):
    where, changed = run(name)
    assert changed
    assert {"best", "last", "last.ckpt"} <= {p.name for p in where.iterdir()}
    facts = read_config(where / "last")["provenance"]
    assert facts["iteration"] == 2
    assert facts["averaged"]
    model = load(where / "last")
    assert all(v.isfinite().all() for v in model.parameters())
    if "train.classification" not in TEXT[name]:
        assert isinstance(model, Generator)
        assert model.steps == steps_of(name, options(name, where))
    monitored = re.search(r"monitor: (\S+?)[,}]", TEXT[name]).group(1)
    assert math.isfinite(read_config(where / "best")["provenance"]["scores"][monitored])
    assert list(where.rglob("metrics.csv")), "the recipe's own log"


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith("toy")])
def test_methods_train_in_bf16_with_weights_in_float32(run, name):
    run(name)
    given = ["--trainer.precision=bf16-mixed", "--trainer.limit_val_batches=0", "--trainer.logger=false"]
    given += ["--trainer.callbacks=[{class_path: fewstep.train.ema.EMA, init_args: {decay: 0.99}}]"]
    cli, seen = instantiate(recipes.find(name), [*options(name, run.folder), *given]), set()
    net = cli.model.student.denoiser.net
    layer = next(m for m in net.modules() if isinstance(m, torch.nn.Linear))
    layer.register_forward_hook(lambda m, x, out: seen.add(out.dtype))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    after = net.state_dict()
    assert torch.bfloat16 in seen
    assert {v.dtype for v in after.values()} == {v.dtype for v in before.values()}
    assert all(v.isfinite().all() for v in after.values())
    assert any(not torch.equal(v, before[k]) for k, v in after.items())


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_says_what_it_is_and_has_no_setting_of_its_own_twice(name):
    text = TEXT[name]
    assert text.startswith("# ")
    assert re.search(r"minutes?\b", text.partition("\n")[0]), "how long it takes"
    folders = set(re.findall(r"(?:default_root_dir|save_dir): (\S+?)[}\s]", text))
    assert folders == {f"runs/{name.split('/')[1]}"}


# --- killed and resumed ------------------------------------------------------------------------------------------

ITERATIONS = 40
# Every 7 iterations: no whole number of passes over the data, of stages or of validations ends at most checkpoints.
CALLBACKS = """[{class_path: fewstep.train.ema.EMA, init_args: {decay: 0.99}},
                {class_path: fewstep.train.checkpoints.Checkpoints, init_args: {every: 7}}]"""


@pytest.fixture(scope="module")
def processes():
    """words of a line -> what `fork_worker.py` answers."""
    command = [sys.executable, str(Path(__file__).with_name("fork_worker.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:

        def told(*words):
            process.stdin.write("\0".join(map(str, words)).replace("\n", " ") + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip() if words != ("end",) else None

        yield told


@pytest.fixture
def worker(processes):
    """The same, for the objects of one recipe."""
    yield processes
    processes("end")


# The digits' recipes are the toy ones' methods.
@pytest.mark.parametrize("name", [n for n in ALL if not n.startswith("digits")])
def test_a_killed_run_resumes_bit_for_bit(run, worker, tmp_path, name):
    run(name)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given = [*options(name, run.folder), f"--model.init_args.iterations={ITERATIONS}"]
    given += ["--model.init_args.ratio=3"] if "ratio:" in TEXT[name] else []
    given += [
        f"--model.init_args.{v}"
        for v in ("degradation=9", "kept=3", "backtracking=0.5")
        if "degradation:" in TEXT[name]
    ]
    given += ["--trainer.logger=false", "--trainer.val_check_interval=25", f"--trainer.callbacks={CALLBACKS}"]

    assert worker("make", run.folder, recipes.find(name), *given, "--trainer.default_root_dir=.") == "made"
    assert worker("wait", worker("fit", whole)) == str(ITERATIONS)
    checkpoint = broken / "last.ckpt"
    process = worker("fit", broken)
    until = time.monotonic() + 120
    while not checkpoint.exists():
        assert time.monotonic() < until, "no checkpoint within two minutes"
        time.sleep(0.001)
    time.sleep(random.random() * 0.02)
    os.kill(int(process), signal.SIGKILL)
    assert worker("wait", process) == str(-signal.SIGKILL)
    reached = torch.load(checkpoint, weights_only=True)["state_dict"]["iteration"].item()
    assert 0 < reached < ITERATIONS
    assert not (broken / "last").exists()
    assert worker("wait", worker("fit", broken, checkpoint)) == str(ITERATIONS - reached)

    a, b = (torch.load(where / "last.ckpt", weights_only=True) for where in (whole, broken))
    average = next(k for k in a["callbacks"] if k.startswith("EMA"))
    for part in ("state_dict", "optimizer_states"):
        compare(a[part], b[part])
    compare(a["callbacks"][average], b["callbacks"][average])
    one, two = ((where / "last" / "model.safetensors").read_bytes() for where in (whole, broken))
    assert one == two


def compare(a, b):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key], key


def tensors(tree, at=""):
    """Every leaf of a checkpoint by its place."""
    if isinstance(tree, dict):
        return {k: v for key, sub in tree.items() for k, v in tensors(sub, f"{at}/{key}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for i, sub in enumerate(tree) for k, v in tensors(sub, f"{at}/{i}").items()}
    return {at: tree}
