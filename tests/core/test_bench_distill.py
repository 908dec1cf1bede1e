"""The bench of distillation methods: worlds move recipes, score samples, and a row is made once."""

import json
import math

import pytest
import torch
import yaml

from fewstep import recipes
from fewstep.bench import distill
from fewstep.bench.distill_worlds import WORLDS, Correlated, DigitsWorld, PatchesWorld, Ring
from fewstep.pairs import Job
from fewstep.preference.rewards import LogDensity
from fewstep.train.fit import instantiate


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", [Ring, Correlated])
def test_real_samples_cover_all_modes_and_blurred_ones_do_not(kind):
    world = kind()
    real, batch = world.data(generator(0)), world.data(generator(1))
    modes = len(world.mixture.means)
    floor = world.scores(batch["x0"], batch["label"], real["x0"])
    assert floor["modes"] == modes
    assert floor["near"] > 0.98
    assert floor["tv"] < 0.03
    assert floor["sliced_wasserstein"] < 0.06
    centre = world.scores(0.1 * torch.randn(batch["x0"].shape, generator=generator()), batch["label"], real["x0"])
    assert centre["modes"] == 0
    assert centre["sliced_wasserstein"] > 5 * floor["sliced_wasserstein"]


def test_a_lost_mode_is_counted():
    world = Ring()
    batch = world.data(generator())
    batch["x0"][batch["label"] == 3] = batch["x0"][batch["label"] == 4][0]
    found = world.scores(batch["x0"], batch["label"], world.data(generator(1))["x0"])
    assert found["modes"] == 7
    assert found["tv"] == pytest.approx(1 / 8, abs=0.02)


def test_what_depends_on_what():
    needed = distill.plan(Ring())
    assert distill.root("ring_guided_few", needed) == "ring_classes"
    assert distill.root("ring_instaflow", needed) == "ring_flow"
    assert distill.root("ring_hyper_sd", needed) == "ring_flow"
    assert "ring_hyper_sd_feedback" in needed  # alignment as a stage
    names = distill.entries(needed)
    assert {"ring_flow", "ring_trig", "ring_classes"} <= set(names[:3])
    assert set(names) == set(needed)
    assert "digits_classifier" not in distill.entries(distill.plan(WORLDS["digits"]()))


def test_recipes_move_to_the_mixture_with_their_networks():
    world = Correlated()
    for name in distill.plan(world):
        moved = world.moved(yaml.safe_load((recipes.folder() / f"toy/{name}.yaml").read_text()))
        assert moved["data"]["class_path"] == "fewstep.toy_data.CorrelatedData"
        text = json.dumps(moved)
        assert '"dim": 2' not in text
        assert '"classes": 8' not in text
        assert '"std": 0.2}' not in text
    assert Ring().std == pytest.approx(0.2, rel=0.02)  # what a reward of the recipes counts in
    x, k = world.mixture.draw_labelled(4000, torch.Generator().manual_seed(1))
    feedback = world.moved(yaml.safe_load((recipes.folder() / "toy/ring_hyper_sd_feedback.yaml").read_text()))
    reward = LogDensity(**feedback["model"]["init_args"]["reward"]["init_args"])
    assert reward(x, {}).median() == pytest.approx(-math.log(2), abs=0.03)


def test_recipes_of_the_digits_move_to_the_patches():
    world = PatchesWorld()
    for name in distill.entries(distill.plan(world)):
        text = json.dumps(world.moved(yaml.safe_load((recipes.folder() / f"digits/{name}.yaml").read_text())))
        assert "fewstep.digits.Digits" not in text
        assert "DigitsJudge" not in text
        assert '"channels": 1' not in text
        assert '"classes": 10' not in text


def test_the_teacher_of_the_patches_is_a_training(tmp_path):
    moved = PatchesWorld().moved(yaml.safe_load((recipes.folder() / "digits/digits_teacher.yaml").read_text()))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(moved))
    run = instantiate(tmp_path / "recipe.yaml", ["--data.init_args.batch_size=4"])
    batch = next(iter(run.datamodule.train_dataloader()))
    assert batch["x0"].shape == (4, 3, 16, 16)
    assert run.model.loss(batch)["denoising"].isfinite()


def test_the_teacher_of_the_mixture_is_a_training(tmp_path):
    moved = Correlated().moved(yaml.safe_load((recipes.folder() / "toy/ring_classes.yaml").read_text()))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(moved))
    run = instantiate(tmp_path / "recipe.yaml")
    batch = next(iter(run.datamodule.train_dataloader()))
    assert batch["x0"].shape == (256, 64)
    assert run.model.loss(batch)["denoising"].isfinite()


class Small(Ring):
    """Two iterations of everything."""

    name, samples = "small", 200

    def moved(self, recipe):
        recipe["model"]["init_args"]["iterations"] = 2
        recipe["trainer"]["val_check_interval"] = 2
        if "pool" in recipe["model"]["init_args"]:
            recipe["model"]["init_args"]["pool"]["init_args"]["size"] = 512
        if "degradation" in recipe["model"]["init_args"]:
            recipe["model"]["init_args"].update(degradation=1, kept=1)
        return recipe


def test_a_row_is_made_once_after_its_teachers(tmp_path):
    row = distill.measured("ring_instaflow", Small(), 3, tmp_path)
    assert row["iterations"] == 2
    assert set(row["at"]) == {"1", "2", "4"}
    assert all(v["to_teacher"] > 0 for v in row["at"].values())
    folder = tmp_path / "small/3"
    assert {p.name for p in folder.iterdir()} == {"ring_flow", "ring_reflow", "ring_instaflow"}
    before = (folder / "ring_instaflow/row.json").read_text()
    assert distill.measured("ring_instaflow", Small(), 3, tmp_path) == row
    assert (folder / "ring_instaflow/row.json").read_text() == before
    assert "seed: 3" not in (folder / "ring_flow/recipe.yaml").read_text()  # given as options, the same for all


def test_every_method_gives_a_row(tmp_path):
    world = Small()
    for name in distill.entries(distill.plan(world)):
        row = distill.measured(name, world, 0, tmp_path)
        assert row["at"][str(row["own_steps"])]["to_teacher"] >= 0
        assert row["teacher"]["modes"] >= 0


class SmallDigits(DigitsWorld):
    """Two iterations, few pairs of one teacher step."""

    name, teacher_steps, pairs = "small", 2, Job(300, steps=1, cfg=1.5)

    def moved(self, recipe):
        recipe["model"]["init_args"]["iterations"] = 2
        recipe["trainer"]["val_check_interval"] = 2
        return recipe


def test_digits_from_stored_pairs_make_them_first(tmp_path):
    row = distill.measured("digits_kd", SmallDigits(), 0, tmp_path)
    assert row["guidance"] == 1.5
    assert {p.name for p in (tmp_path / "small/0").iterdir()} == {"digits_teacher", "digits_pairs", "digits_kd"}
    assert row["teacher"]["frechet"] > 0
    assert 0 <= row["at"]["1"]["accuracy"] <= 1


def test_finished_rows_are_written_without_training(tmp_path, monkeypatch, capsys):
    row = distill.measured("ring_kd", Small(), 0, tmp_path) | {"world": "ring"}
    place = tmp_path / "ring/0/ring_kd"
    place.mkdir(parents=True)
    (place / "row.json").write_text(json.dumps(row))
    monkeypatch.setattr(distill, "trained", lambda *args: pytest.fail("nothing is to be trained"))
    out = tmp_path / "table.json"
    options = ["--world", "ring", "--seeds", "0", "--folder", str(tmp_path), "--finished", "--out", str(out)]
    assert distill.main(argv=options) == 0
    assert json.loads(out.read_text())["rows"] == [row]
    assert "| kd | 1 |" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").is_file()
    # What the table has stays, whether or not its folder does.
    for seed in (1, 0):
        out.write_text(json.dumps({"rows": [row | {"seed": seed, "cpu_seconds": 7.0}]}))
        assert distill.main(argv=options) == 0
        seconds = {r["seed"]: r["cpu_seconds"] for r in json.loads(out.read_text())["rows"]}
        assert seconds == ({0: row["cpu_seconds"], 1: 7.0} if seed else {0: 7.0})


def test_the_guidance_of_a_recipe_is_the_middle_of_its_range():
    guided, plain = (yaml.safe_load((recipes.folder() / f"toy/ring_{n}.yaml").read_text()) for n in ("lcm", "kd"))
    assert distill.guidance_of(guided) == 3.0
    assert distill.guidance_of(plain) == 1.0


def test_the_picture_shows_medians_of_every_method(tmp_path):
    row = lambda method, seed, d: {
        "world": "ring",
        "method": method,
        "seed": seed,
        "at": {n: {"sliced_wasserstein": d / int(n)} for n in ("1", "2", "4")},
    }
    rows = [row("kd", seed, d) for seed, d in enumerate((0.03, 0.2, 0.04))] + [row("cd", 0, 0.06)]
    rows[-1]["at"] = {"4": {"sliced_wasserstein": 0.05}}  # a method with a fixed number of steps
    assert distill.medians(rows, Ring()) == {"kd": {"1": 0.04, "2": 0.02, "4": 0.01}, "cd": {"4": 0.05}}
    full = {"guidance": 1.0, "own_steps": 4, "cpu_seconds": 7.0, "teacher": {"sliced_wasserstein": 0.02, "modes": 8}}
    for k, row in enumerate(rows):
        row.update(full)
        row["at"]["4"].update(to_teacher=0.1, modes=8 - k % 2)
    table = distill.pages(rows, {"ring": {"sliced_wasserstein": 0.02, "modes": 8}})
    assert "| kd | 1 | 0.040 | 0.020 | 0.010 | 4 | 0.010 | 7 | 0.100 | 0.020 | 7 | 3 |" in table
    assert "| cd | 1 |  |  | 0.050 | 4 |" in table
    distill.draw(rows, {"ring": {"sliced_wasserstein": 0.02}}, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 5000
