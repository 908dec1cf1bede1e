"""The bench of convergence: when a curve is below a level to stay."""

import inspect
import re

import pytest
import torch
import yaml

from fewstep import recipes
from fewstep.bench.convergence import measured, move, reached, without
from fewstep.distill.disback import DisBack
from fewstep.distill.dmd import DMD
from fewstep.grids import Uniform
from fewstep.train.fit import instantiate


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


def test_without_it_disback_is_dmd_of_the_same_recipe():
    recipe = yaml.safe_load(recipes.find("toy/ring_disback").read_text())["model"]
    plain = without(recipe)
    named = {p.name for kind in DisBack.__mro__ if issubclass(kind, DMD) and kind is not DMD for p in parameters(kind)}
    assert plain["class_path"] == f"{DMD.__module__}.{DMD.__qualname__}"
    assert recipe["init_args"].keys() - plain["init_args"].keys() == named
    assert plain["init_args"].items() <= recipe["init_args"].items()


def parameters(kind):
    """Of its constructor, without those that are every method's."""
    common = ("self", "teacher", "iterations", "kwargs")
    return [p for p in inspect.signature(kind.__init__).parameters.values() if p.name not in common]


def test_a_curve_has_a_point_for_every_validation_and_begins_as_far_as_asked_for(tmp_path, monkeypatch):
    """The shipped recipes, of four iterations."""
    short = tmp_path / "recipes" / "toy"
    short.mkdir(parents=True)
    for name in ("ring_flow", "ring_disback"):
        text = recipes.find(f"toy/{name}").read_text()
        text = text.replace("degradation: 500", "degradation: 2").replace("kept: 4", "kept: 1")
        (short / f"{name}.yaml").write_text(re.sub(r"iterations: \d+", "iterations: 4", text))
    monkeypatch.setattr(recipes, "folder", lambda: short.parent)
    first = {}
    for method in ("disback", "without"):
        for shift in (0.0, 6.0):
            row = measured(method, shift, 0, tmp_path / "runs", every=2)
            assert [done for done, _ in row["curve"]] == [2, 4]
            first[method, shift] = row["curve"][0][1]
        # Far apart, the energy distance is twice the distance, here 6 deviations of 1.43, less what both have in themselves.
        assert 10 < first[method, 6.0] < 17.2
        assert 0 < first[method, 0.0] < 3
    assert (tmp_path / "runs/ring/0/ring_flow/last").is_dir()
    assert not (tmp_path / "runs/ring/0/ring_disback").exists()


def test_a_student_is_moved_by_its_last_layer():
    model = instantiate(recipes.find("toy/ring_flow"), []).model.student
    model.grid, model.steps = Uniform(start=0.8), 1
    noise = torch.randn(5, 2)
    before = model.generate(noise)
    move(model, 3.0)
    torch.testing.assert_close(model.generate(noise) - before, torch.tensor([[3.0, 0.0]]).expand(5, 2))
