"""Every recipe of 3-D takes two steps on small sizes, resumes bit for bit, and what it leaves makes meshes."""

import json
import math
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from fewstep import recipes
from fewstep.artifacts import load, read_config, save
from fewstep.cli import main
from fewstep.train.fit import instantiate
from fewstep_3d.cameras import orbit
from fewstep_3d.fields import Grid
from fewstep_3d.mesh_files import read_mesh
from fewstep_3d.mesh_views import mesh_views
from fewstep_3d.multi_view import MultiViewGenerator
from fewstep_3d.texts import hashed
from fewstep_3d.triplane_generator import TriplaneGenerator

STUDENTS = [
    f"shapes_{name}" for name in ("sds", "csd", "asd", "vsd", "dmd", "sim", "prd2", "prd4", "anchored", "members")
]
NAMES = ["shapes_teacher", *STUDENTS, "meshes_teacher", "meshes_sds"]
NET = "model.init_args.student.init_args.denoiser.init_args.net.init_args"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """name -> the module of a recipe after two iterations, after those that it needs."""
    folder, done = tmp_path_factory.mktemp("recipes"), {}
    (folder / "meshes").mkdir()
    trimesh.creation.icosphere(2, 0.7).export(folder / "meshes" / "ball.ply")
    trimesh.creation.box((1, 2, 1)).export(folder / "meshes" / "brick.ply")

    def run(name):
        needed = "meshes_teacher" if name.startswith("meshes") else "shapes_teacher"
        if name not in done:
            if name != needed:
                run(needed)
            cli = instantiate(recipes.find(f"3d/{name}"), options(name))
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
            done[name] = cli.model
        return done[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield run


def options(name, iterations=2):
    given = [
        f"--model.init_args.iterations={iterations}",
        "--trainer.val_check_interval=2",
        "--trainer.accelerator=cpu",
    ]
    given += ["--data.init_args.batch_size=2", "--data.init_args.per_class=2", "--data.init_args.side=12"]
    given += ["--data.init_args.members=3", f"--{NET}.width=8"]
    if name.endswith("teacher"):
        given += ["--model.init_args.student.init_args.rig.size=12", "--data.init_args.rig.size=12"]
        given += ["--data.init_args.renderer.sampler=fewstep_3d.samplers.Stratified"]
        given += ["--data.init_args.renderer.sampler.init_args.samples=8", "--data.init_args.renderer.normals=true"]
    else:
        given += ["--data.init_args.rig.size=12", "--model.init_args.student.init_args.side=12"]
        given += ["--model.init_args.student.init_args.latent_side=4"]
    if name in ("shapes_anchored", "shapes_members"):
        given += [f"--model.init_args.anchors.init_args.{k}" for k in ("count=3", "numbers=2", "steps=1")]
    return given


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_and_leaves_a_model(trained, name):
    module = trained(name)
    facts = read_config(Path("runs") / name / "last")["provenance"]
    assert facts["iteration"] == 2
    assert facts["scores"]
    assert all(math.isfinite(v) for v in facts["scores"].values())
    model = load(f"runs/{name}/last")
    assert isinstance(model, MultiViewGenerator if name.endswith("teacher") else TriplaneGenerator)
    if isinstance(model, TriplaneGenerator):
        assert model.steps == {"shapes_prd2": 2, "shapes_prd4": 4}.get(name, 1)
        assert {"val/iou", "val/nearest", "val/apart"} <= module.latest.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["shapes_teacher", "shapes_asd", "shapes_dmd", "shapes_prd2", "shapes_anchored"])
def test_a_killed_run_resumes_bit_for_bit(trained, name):
    trained(name)
    made = []
    for folder, iterations, start in (("whole", 3, None), ("part", 2, None), ("rest", 3, f"part/{name}/last.ckpt")):
        place = f"{folder}/{name}"
        given = [f"--trainer.default_root_dir={place}", "--trainer.logger=false", "--trainer.val_check_interval=9"]
        given += ["--seed_everything=1", "--model.init_args.schedule=fewstep.train.schedules.Constant"]
        given += ["--model.init_args.annealed=null"] if "teacher" not in name else []
        cli = instantiate(recipes.find(f"3d/{name}"), [*options(name, iterations), *given])
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=start, weights_only=True)
        made.append(cli.model.state_dict())
    whole, part, rest = made
    assert whole.keys() == rest.keys()
    assert all(torch.equal(whole[k], rest[k]) for k in whole)
    assert not all(torch.equal(whole[k], part[k]) for k in whole)


def test_recipes_name_themselves():
    for name in NAMES:
        text = recipes.find(f"3d/{name}").read_text()
        assert text.startswith("# ")
        assert text.count(f"runs/{name}\n") == 1
        assert text.count(f"save_dir: runs/{name}}}") == 2


def run(*args):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in args])
    return end.value.code


def with_surface(name):
    """Its student with a ball of half the cube, whatever it has learnt."""
    model = load(f"runs/{name}/last")
    with torch.no_grad():
        model.decoder.shape_last[-1].weight.zero_()
        model.decoder.shape_last[-1].bias.zero_()
    return save(model, f"{name}-ball")


@pytest.mark.filterwarnings("ignore")
def test_a_class_becomes_a_mesh(trained, capsys):
    trained("shapes_sds")
    model = with_surface("shapes_sds")
    assert run("mesh", "chair", "chair.glb", "--model", model, "--resolution", 24, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["watertight"]
    assert set(told["seconds"]) == {"field", "surface", "file"}
    assert len(read_mesh("chair.glb").faces) == told["faces"]
    for args, words in (
        (["tree", "o.glb"], "no class 'tree'; this model makes sphere, box"),
        (["chair", "o.glb", "--steps", 0], "--steps"),
        (["chair", "o.png"], ".glb"),
        (["chair", "o.glb", "--model", "nothing"], "no model"),
        (["chair", "o.glb", "--model", "runs/shapes_teacher/last"], "TriplaneGenerator"),
    ):
        assert run("mesh", *args, *([] if "--model" in args else ["--model", model])) != 0
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    assert not Path("o.glb").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_picture_becomes_a_mesh(trained, capsys):
    trained("meshes_sds")
    model = with_surface("meshes_sds")
    seen = mesh_views(trimesh.creation.icosphere(2, 0.7), orbit(torch.tensor([0.0]), size=(24, 24)))
    rgba = torch.cat([0.5 + 0.5 * seen.normals[0], seen.mask[0, ..., None]], -1)
    Image.fromarray((rgba * 255).round().byte().numpy()).save("ball.png")
    assert run("mesh", "ball.png", "ball.glb", "--model", model, "--resolution", 24) == 0
    Image.new("RGB", (8, 8)).save("flat.png")
    assert run("mesh", "flat.png", "o.glb", "--model", model) != 0
    assert "alpha" in capsys.readouterr().err
    assert run("mesh", "chair", "o.glb", "--model", model) != 0
    assert "no picture" in capsys.readouterr().err


def test_texts_with_words_in_common_are_near():
    a, b, c = (hashed(t, 64) for t in ("a red chair", "A red Chair!", "two blue tables"))
    assert torch.equal(a, b)
    assert a.norm().item() == pytest.approx(8)
    assert torch.dot(a, hashed("a green chair", 64)) > torch.dot(a, c) + 5
    with pytest.raises(ValueError, match="word"):
        hashed("?!", 64)


@pytest.mark.filterwarnings("ignore")
def test_the_bench_of_classes_fills_its_table(trained, capsys):
    """With trainings that are there, on a coarse grid; a second run judges nothing again."""
    from fewstep_3d.bench import classes

    trained("shapes_prd2")
    Path("bench").mkdir()
    Path("bench/0").symlink_to(Path("runs").resolve())
    given = ["--seeds", "0", "--systems", "shapes_prd2", "--per-class", "2", "--members", "3", "--side", "12"]
    assert classes.main([*given, "--folder", "bench", "--out", "classes.json"]) == 0
    table = json.loads(Path("classes.json").read_text())
    rows = {row["system"]: row for row in table["rows"]}
    assert set(rows) == {
        "teacher 20 steps, carved",
        "sphere",
        *(f"shapes_prd2, {k} step{'s' * (k > 1)}" for k in (1, 2, 4)),
    }
    assert rows["sphere"]["watertight"] == 1
    assert rows["sphere"]["diversity"] == [0] * 6
    assert rows["sphere"]["iou_of_classes"]["sphere"] > rows["sphere"]["iou_of_classes"]["chair"]
    assert all(0 < d < 1 for d in table["diversity_of_members"])
    assert all(row["seconds"] > 0 for row in rows.values())
    before = Path("bench/0/sphere.json").stat().st_mtime_ns
    assert classes.main([*given, "--folder", "bench"]) == 0
    assert Path("bench/0/sphere.json").stat().st_mtime_ns == before


@pytest.mark.filterwarnings("ignore")
def test_the_bench_of_classes_trains_for_the_seconds_it_is_given(trained, capsys):
    """As many iterations as a trial says, schedules to their end; asked again, the trial is not repeated."""
    from fewstep_3d.bench import classes

    trained("shapes_teacher")
    Path("equal/0").mkdir(parents=True)
    Path("equal/0/shapes_teacher").symlink_to(Path("runs/shapes_teacher").resolve())
    given = ["--seeds", "0", "--systems", "shapes_sds", "--per-class", "2", "--members", "3", "--side", "12"]
    given += ["--folder", "equal", "--seconds", "2", "--set", *(o[2:] for o in options("shapes_sds")[1:])]
    assert classes.main([*given, "--out", "classes.json"]) == 0
    plan = json.loads(Path("equal/0/shapes_sds/plan.json").read_text())
    assert plan["iterations"] == max(1, round(2 / plan["each"]))
    row = next(r for r in json.loads(Path("classes.json").read_text())["rows"] if r["system"].startswith("shapes_sds"))
    assert row["training"]["iterations"] == plan["iterations"]
    assert classes.affordable("shapes_sds", 0, Path("equal"), 100.0, []) == plan["iterations"]


@pytest.mark.filterwarnings("ignore")
def test_the_bench_of_pictures_judges_every_mesh_from_held_out_sides(trained, capsys):
    from fewstep_3d.bench import images

    trained("meshes_sds")
    Path("pictures").mkdir()
    Path("pictures/0").symlink_to(Path("runs").resolve())
    given = ["--meshes", "meshes", "--seeds", "0", "--views", "3", "--side", "12", "--folder", "pictures"]
    assert images.main([*given, "--out", "images.json", "--film", "images.png"]) == 0
    assert iio.imread("images.png").shape == (2 * 96, 2 * 96, 3)
    table = json.loads(Path("images.json").read_text())
    assert table["meshes"] == ["ball", "brick"]
    apart = table["iou_between_meshes"]
    assert apart[0][0] == apart[1][1] == 1 and 0 < apart[0][1] == apart[1][0] < 1
    assert [row["system"] for row in table["rows"]] == ["meshes_sds, 1 step", "teacher 20 steps, carved"]
    for row in table["rows"]:
        assert np.shape(row["iou_of_views"]) == (2, 3)
        assert row["iou"] == pytest.approx(np.mean(row["iou_of_views"]))
        assert row["training"]["iterations"] == 2
    perfect = images.seen(Path("meshes"), False, 3, 12)
    again = iter(perfect.sdf)  # a system that makes every mesh itself
    row = images.judged(lambda image, _: Grid(next(again)[None].expand(len(image), -1, -1, -1, -1)), perfect, 0)
    assert row["iou"] == row["nearest"] == row["watertight"] == 1
    assert row["chamfer_l1"] < 2 * row["chamfer_floor"]


@pytest.mark.filterwarnings("ignore")
def test_turntables_have_a_column_for_every_class_and_a_row_for_every_object(trained):
    from fewstep_3d.bench import turns

    trained("shapes_sds")
    model = with_surface("shapes_sds")
    given = [str(model), "--objects", "2", "--side", "24", "--size", "24", "--frames", "4"]
    assert turns.main([*given, "--out", "turns.gif"]) == 0
    frames = iio.imread("turns.gif", index=None)
    assert frames.shape == (4, 3 * 24, 6 * 24, 3)
    assert (frames[0] != frames[2]).any()
    assert turns.main([*given, "--out", "turns.png", "--channels", "normal"]) == 0
    image = iio.imread("turns.png").astype(int)
    assert image.shape == (3 * 24, 6 * 24, 3)
    dark = (image.sum(2) < 3 * 255).reshape(3, 24, 6, 24).sum((1, 3))  # pixels of every object
    assert (dark > 4).all()


@pytest.mark.filterwarnings("ignore")
def test_the_demo_leaves_a_report(tmp_path, monkeypatch, capsys):
    small = {
        "per_class: 150": "per_class: 1",
        "per_class: 4": "per_class: 1",
        "width: 32": "width: 8",
        "steps: 10": "steps: 2",
    }
    found = recipes.find

    def find(name):
        text = found(name).read_text()
        for old, new in small.items():
            text = text.replace(old, new)
        file = tmp_path / f"{Path(name).name}.yaml"
        file.write_text(text)
        return file

    monkeypatch.setattr(recipes, "find", find)
    assert run("demo", "3d", "--minutes", 0.001, "--out", tmp_path / "demo", "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    assert set(metrics["methods"]) == {"student, 1 step", "teacher, 20 steps, carved"}
    assert metrics["training"]["student"]["iterations"] == 20
    assert {"index.html", "metrics.json", "teacher", "student", "meshes", "turntables"} <= {
        p.name for p in (tmp_path / "demo").iterdir()
    }
    assert run("demo", "3d", "--data", "x", "--out", tmp_path / "other") != 0
