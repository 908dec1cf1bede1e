"""The bench of procedural clips: its systems are those of recipes, its targets read the right rows, and finished work is not made again."""

import json

import pytest
import yaml

from fewstep import recipes
from fewstep_video.bench.shapes import TARGETS, WORLDS, floor, real_clips, systems
from fewstep_video.bench.targets import judged


@pytest.mark.parametrize("family", WORLDS)
def test_systems_name_recipes_and_steps_that_their_grids_allow(family):
    for name, system in systems(family).items():
        recipe = yaml.safe_load(recipes.find(f"video/{system.recipe}").read_text())["model"]["init_args"]
        assert name.endswith(f" {system.steps}")
        own = recipe["student"]["init_args"]["steps"] if "student" in recipe else recipe.get("steps", 1)
        assert system.steps <= own or (own == 1 and system.recipe.endswith("lcm"))
        assert (system.artifact == "last") == system.recipe.endswith("teacher")


@pytest.mark.parametrize("family", WORLDS)
def test_targets_read_the_right_rows_and_take_the_median_of_seeds(family):
    names = ["real", *systems(family)]
    keys = ("mfvd", "rfvd", "direction", "speed", "diversity", "count", "seconds_per_clip")
    rows = [{"system": n, "seed": seed, **{k: seed + 1.0 for k in keys}} for n in names for seed in (0, 1, 2)]
    found = {r["target"]: r for r in judged(TARGETS[family], rows)}
    assert len(found) == len(TARGETS[family])
    assert (
        found["4 steps: times faster than 50"]["values"] == [1, 1, 1]
        and not found["4 steps: times faster than 50"]["reached"]
    )
    ratios = [t for t in found if "/" in t]
    assert all(found[t]["median"] == 1 for t in ratios) and found["DMD2 mFVD(4)/teacher"]["reached"]
    only = [r for r in rows if r["system"].startswith(("real", "teacher"))]
    assert 0 < len(judged(TARGETS[family], only)) < len(found), (
        "targets of systems that were not asked for are left out"
    )


def test_the_floor_is_of_clips_that_neither_trained_nor_chose():
    from fewstep_video.data.procedural import held_out

    world = WORLDS["shapes"]
    chosen = held_out(world, 8)["video"]
    assert (real_clips(world, 8, 0) - chosen).abs().max() > 0.1
    found = floor(world, 64, 128, 0)
    assert json.dumps(found) and found["direction"] == 1 and found["mfvd"] > 0
