"""Benches of MCM, DCM and streams: their systems, figures and targets; one of them whole, of trainings of one step."""

import argparse
import json

import pytest
import torch
from small import causal

from fewstep import recipes
from fewstep.artifacts import save
from fewstep_video.bench import dcm, mcm, stream
from fewstep_video.bench.targets import Target, judged
from fewstep_video.bench.variants import Variant
from fewstep_video.data import procedural

SMALL = [
    "--model.init_args.iterations=1",
    "--trainer.val_check_interval=1",
    "--trainer.accelerator=cpu",
    "--data.init_args.batch_size=2",
]


@pytest.mark.filterwarnings("ignore")
def test_a_bench_makes_every_row_once(tmp_path, capsys, monkeypatch):
    own, systems = procedural.held_out, mcm.systems
    monkeypatch.setattr(procedural, "held_out", lambda world, n, part=0: own(world, 4, part))
    monkeypatch.setattr(mcm, "systems", lambda family: {k: systems(family)[k] for k in ("mcm", "mcm raw")})
    args = ["--seeds", "0", "--clips", "6", "--real", "8", "--folder", str(tmp_path / "runs")]
    args += [f"--set={option}" for option in SMALL]
    found = []
    for out in ("one.json", "two.json"):
        assert mcm.main([*args, "--out", str(tmp_path / out)]) == 0
        found.append(json.loads((tmp_path / out).read_text())["rows"])
        monkeypatch.setattr("fewstep.train.fit.instantiate", None)
    capsys.readouterr()
    assert found[0] == found[1] and [r["system"] for r in found[0]][:2] == ["real", "mcm 4"]
    assert len(found[0]) == 1 + 2 * 3 and all(r["pictures"] > 0 and r["mfvd"] > 0 for r in found[0])


def test_systems_are_of_recipes_that_there_are():
    for family in ("shapes", "bouncing", "asl"):
        made = [*dcm.systems(family).values()] + ([*mcm.systems(family).values()] if family != "asl" else [])
        for variant in made:
            assert "fewstep" in recipes.find(f"video/{variant.recipe}").read_text()
            assert isinstance(variant, Variant) and (variant.name != variant.recipe)
    names = {name for family in ("shapes",) for name in dcm.systems(family)} | {"teacher 50", "one expert 4", "real"}
    rows = {name: dict.fromkeys(("mfvd", "jerk", "extra_parameters"), 1.0) for name in names}
    assert [t.value(rows) for t in dcm.targets("shapes")] == [1.0] * 4


def test_figures_of_a_stream(tmp_path, monkeypatch):
    model = causal(shape=(3, 8, 16, 16), classes=1)
    save(model, tmp_path / "best")
    found = stream.exactness(tmp_path)
    assert found["difference"] < 1e-5 and found["prefix"] == 1
    monkeypatch.setattr(stream, "BLOCKS", 40)
    spent = stream.cost_of(tmp_path, 1, 16)
    assert 0.2 < spent["seconds_ratio"] < 5 and spent["memory_ratio"] < 1.05 and spent["fps"] > 0
    assert stream.skipping(tmp_path)["share"] >= 0.9
    args = argparse.Namespace(real=8, clips=4)
    world = stream.WORLD.balanced(4, 1).video
    still = world[:, :, :1].expand(-1, -1, 120, -1, -1)
    figures = stream.figures(still, torch.zeros(4, dtype=torch.long), 2, args, 0)
    assert figures["seam"] == 1 and abs(figures["drift_mean"]) < 1e-9 and figures["count_0"] == figures["count_112"]
    without = stream.loaded(tmp_path)
    stream.without_sink(without)
    assert without.denoiser.net.reach.seen(5) == [3, 4]


def test_targets_are_of_the_median_seed_and_left_out_where_a_system_is_missing():
    rows = [{"seed": k, "system": "a", "x": v} for k, v in enumerate((1.0, 5.0, 2.0))]
    targets = [Target("x", lambda r: r["a"]["x"], at_most=2), Target("y", lambda r: r["b"]["x"], at_least=1)]
    (one,) = judged(targets, rows)
    assert one["values"] == [1.0, 5.0, 2.0] and one["median"] == 2.0 and one["reached"]
    assert not Target("x", lambda r: 0, at_most=2, at_least=1).reached(0.5)
