"""The bench of convergence: when a curve is below a level to stay."""

import re

import pytest

from fewstep import recipes
from fewstep.bench.convergence import METHODS, measured, reached
from fewstep.bench.distill import plan
from fewstep.bench.distill_worlds import Ring


@pytest.mark.parametrize(
    ("values", "level", "wanted"),
    [
        ([3, 2, 1], 2.5, 20),
        ([3, 2, 1], 3.5, 10),
        ([3, 1, 2, 1], 1.5, 40),
        ([1, 1, 2], 1.5, None),
        ([2, 2, 2], 2, None),
        ([], 1, None),
    ],
)
def test_a_level_is_reached_from_where_the_curve_stays_below_it(values, level, wanted):
    assert reached([(10 * (i + 1), v) for i, v in enumerate(values)], level) == wanted


def test_methods_are_recipes_of_one_length():
    assert {f"ring_{m}" for m in METHODS} <= plan(Ring()).keys()


def test_a_curve_has_a_point_for_every_validation(tmp_path, monkeypatch):
    """The shipped recipes, of four iterations."""
    short = tmp_path / "recipes" / "toy"
    short.mkdir(parents=True)
    for name in ("ring_flow", "ring_dmd"):
        text = recipes.find(f"toy/{name}").read_text()
        (short / f"{name}.yaml").write_text(re.sub(r"iterations: \d+", "iterations: 4", text))
    monkeypatch.setattr(recipes, "folder", lambda: short.parent)
    row = measured("dmd", 0, tmp_path / "runs", every=2)
    assert [done for done, _ in row["curve"]] == [2, 4]
    assert all(energy > 0 for _, energy in row["curve"])
    assert (tmp_path / "runs/ring/0/ring_flow/last").is_dir()
    assert not (tmp_path / "runs/ring/0/ring_dmd").exists()
