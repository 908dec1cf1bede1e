"""Benches of MCM, DCM and streams, of trainings of one step."""

import json

import pytest

from fewstep_video.bench import dcm, mcm, stream
from fewstep_video.bench.variants import Target, judged
from fewstep_video.data import procedural

SMALL = [
    "--model.init_args.iterations=1",
    "--trainer.val_check_interval=1",
    "--trainer.accelerator=cpu",
    "--data.init_args.batch_size=2",
]


def run(bench, folder, capsys, *more):
    out = folder / f"{bench.__name__}.json"
    args = ["--seeds", "0", "--clips", "6", "--real", "8", "--folder", str(folder / "runs"), "--out", str(out), *more]
    for option in SMALL:
        args += [f"--set={option}"]
    assert bench.main(args) == 0
    capsys.readouterr()
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("bench", "targets", "systems"),
    [
        (mcm, len(mcm.TARGETS), 1 + 4 * 3),
        (dcm, len(dcm.targets("shapes")), 1 + 5),
        (stream, len(stream.TARGETS), 6),
    ],
)
def test_every_target_has_its_rows_and_a_second_run_makes_nothing_again(
    bench, targets, systems, folder, capsys, monkeypatch
):
    monkeypatch.setattr(stream, "BLOCKS", 40)
    own = procedural.held_out
    monkeypatch.setattr(procedural, "held_out", lambda world, n, part=0: own(world, 4, part))
    found = run(bench, folder, capsys)
    assert len(found["targets"]) == targets and len(found["rows"]) == systems
    monkeypatch.setattr("fewstep.train.fit.instantiate", None)
    assert run(bench, folder, capsys)["rows"] == found["rows"]


def test_targets_are_of_the_median_seed_and_left_out_where_a_system_is_missing():
    rows = [{"seed": k, "system": "a", "x": v} for k, v in enumerate((1.0, 5.0, 2.0))]
    targets = [Target("x", lambda r: r["a"]["x"], at_most=2), Target("y", lambda r: r["b"]["x"], at_least=1)]
    (one,) = judged(targets, rows)
    assert one["values"] == [1.0, 5.0, 2.0] and one["median"] == 2.0 and one["reached"]
    assert not Target("x", lambda r: 0, at_most=2, at_least=1).reached(0.5)
