"""Many processes are one: DDP and FSDP2 on two gloo processes against a single one with the joint batch; and plans of memory."""

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fewstep
from fewstep import recipes
from fewstep.cli import main
from fewstep.train import plan as planning
from fewstep.train.fit import instantiate
from fewstep.train.plan import peak, plan, step

WORKER = Path(__file__).with_name("scale_worker.py")


def launched(script, out, *args, ranks=2):
    """What a script, given a new folder `out`, leaves there of every rank."""
    out.mkdir()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    launch = [] if ranks == 1 else ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"]
    command = [sys.executable, *launch, str(script), str(out), *map(str, args)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [load_file(f) for f in sorted(out.glob("rank*.safetensors"))]


def trained(out, batch_size, strategy, accumulate=1, method="plain"):
    """Parameters and average of every rank, after six steps."""
    return launched(WORKER, out, batch_size, strategy, accumulate, method, ranks=1 if strategy == "auto" else 2)


@functools.cache
def alone(method):
    """The same in one process with the joint batch."""
    with tempfile.TemporaryDirectory() as folder:
        return trained(Path(folder) / "one", 16, "auto", method=method)[0]


@pytest.mark.parametrize(
    ("method", "strategy", "accumulate"),
    [
        ("plain", "ddp", 2),
        ("plain", "fsdp", 1),
        ("dmd2", "ddp_find_unused_parameters_true", 1),
        ("dmd2", "fsdp", 1),
    ],
)
def test_two_processes_train_as_one_with_the_joint_batch(method, strategy, accumulate, tmp_path):
    ranks = trained(tmp_path / "two", 8, strategy, accumulate, method)
    assert len(ranks) == 2
    for name, value in alone(method).items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, rtol=0, atol=1e-6)
    saved = fewstep.load(tmp_path / "two" / "last").state_dict()
    assert all(
        torch.equal(saved[k.removeprefix("average.")], v) for k, v in ranks[0].items() if k.startswith("average.")
    )


def test_processes_share_one_ring_of_pairs(tmp_path):
    one, two = launched(WORKER.with_name("pool_worker.py"), tmp_path / "pool")
    drawn, rows = ([rank.pop(name) for rank in (one, two)] for name in ("drawn", "rows"))
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    assert int(one["filled"]) == 18  # twice two whole batches of 4, then one pair of each
    noise = one["ring_noise"]
    assert len(noise.unique(dim=0)) == len(noise) == 14
    assert not torch.equal(*drawn)
    # Of an `Experience` either holds all, for the checkpoint, and is given its own.
    assert one["experience"].tolist() == [[[1], [1], [2], [2]], [[11], [11], [12], [12]]]
    assert all(torch.equal(r, v) for r, v in zip(rows, one["experience"], strict=True))


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["toy/ring_flow", "restoration/resshift_small"])
def test_a_plan_is_within_a_fifth_of_the_measured_peak(recipe):
    if recipe.startswith("restoration"):
        pytest.importorskip("fewstep_restoration.data")
    file = recipes.find(recipe)
    found = plan(file)
    cli = instantiate(file)
    cli.datamodule.setup("fit")
    model, optimizer = cli.model, cli.model.configure_optimizers()
    batch = next(iter(cli.datamodule.train_dataloader()))
    step(model, [optimizer], batch, torch.float32)
    most = peak(lambda: step(model, [optimizer], batch, torch.float32), model.device)
    assert found.working_bytes == pytest.approx(most, rel=0.2)
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    state = sum(v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values())
    assert (found.parameters_bytes, found.optimizer_bytes) == (own, state)


def test_the_peak_is_what_is_held_at_once():
    def work():
        a = torch.empty(1000, 1000)
        b = torch.empty(500, 1000)
        del a
        torch.empty(100, 1000) + b[0]

    assert peak(work, torch.device("cpu")) == pytest.approx(6e6, rel=0.01)


def test_sharding_divides_what_stands_and_ddp_adds_its_buckets():
    file = recipes.find("toy/ring_flow")
    one, ddp, fsdp = (plan(file, devices=n, strategy=s) for n, s in ((1, "ddp"), (4, "ddp"), (4, "fsdp")))
    assert one.strategy_bytes == 0
    assert ddp.strategy_bytes == one.parameters_bytes
    assert fsdp.parameters_bytes == one.parameters_bytes // 4
    assert fsdp.optimizer_bytes == one.optimizer_bytes // 4
    with pytest.raises(ValueError, match="at least 1"):
        planning.plan(file, devices=0)


def test_the_verb_prints_a_plan(capsys):
    with pytest.raises(SystemExit) as end:
        main(["plan", "-c", str(recipes.find("toy/ring_flow")), "--json", "model.init_args.accumulate=2"])
    assert end.value.code in (0, None)
    facts = json.loads(capsys.readouterr().out)
    assert facts["total_bytes"] == sum(v for k, v in facts.items() if k.endswith("_bytes") and k != "total_bytes")
