"""The bench of training steps: every recipe runs on its network without data on disk, and the clock counts steps."""

import json

import pytest
import yaml

from fewstep import recipes
from fewstep.bench import distill, steps
from fewstep.bench.distill_worlds import DigitsWorld


@pytest.mark.parametrize("name", distill.entries(distill.plan(DigitsWorld())))
def test_recipes_move_to_the_one_network(name):
    text = json.dumps(steps.moved(yaml.safe_load((recipes.folder() / f"digits/{name}.yaml").read_text())))
    assert "StoredPairs" not in text
    assert "fewstep.digits" not in text
    assert '"size": 4096' not in text
    assert '"channels": 1' not in text


@pytest.mark.parametrize("name", ["digits_teacher", "digits_kd", "digits_instaflow"])
def test_a_step_takes_time(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, "WARM", 1)
    monkeypatch.setattr(steps, "TIMED", 2)
    assert steps.milliseconds(name) > 1
    needed = distill.plan(DigitsWorld())[name]
    assert all((tmp_path / f"runs/{n}/last").is_dir() for n in needed)


@pytest.mark.parametrize("name", steps.VARIANTS)
def test_variants_ask_the_teacher_less_often(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = []
    for job in (steps.VARIANTS[name][:1], steps.VARIANTS[name]):
        run = steps.built(*job)
        calls = []
        run.model.teacher.denoiser.net.register_forward_hook(lambda *a, calls=calls: calls.append(1))
        run.model.loss(run.datamodule.batch(8, None))
        counts.append(len(calls))
    before, after = {"digits_cd": (4, 2 if "Heun" in name else 1), "digits_ladd": (0, 0)}.get(
        steps.VARIANTS[name][0], (2, 1)
    )
    assert counts == [before, after]  # features are not the whole network's run


def test_the_network_is_of_the_size_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student = steps.built("digits_teacher").model.student
    assert sum(p.numel() for p in student.parameters()) == pytest.approx(1.6e6, rel=0.05)
