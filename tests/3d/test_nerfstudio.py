"""The nerfstudio plugin, through ns-train's own entry point: found, trained, saved, exported, judged again; one line for bad input."""

import json
import subprocess
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
import torch
import trimesh

import fewstep
from fewstep.cli import main
from fewstep.denoiser import Denoiser
from fewstep.grids import Uniform
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.solvers import DDIM
from fewstep_3d.bench import renderer as bench
from fewstep_3d.cameras import rig
from fewstep_3d.conditions import ConditionedUNet
from fewstep_3d.mesh_views import mesh_views
from fewstep_3d.multi_view import MultiViewGenerator
from fewstep_3d.rigs import Rig
from fewstep_3d.scene import Scene
from fewstep_3d.transforms import read_views, write_views
from fewstep_3d.triplane_generator import TriplaneGenerator

pytest.importorskip("nerfstudio")
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = (
    *("--pipeline.model.sides", "16", "24", "--pipeline.model.samples", "24", "--pipeline.model.resolution", "24"),
    *("--pipeline.model.channels", "8", "--pipeline.model.width", "16"),
    *("--pipeline.datamanager.train-num-rays-per-batch", "1024", "--steps-per-save", "20"),
)


def ns_train(folder, *args):
    """Run ns-train in process with its results below `folder`; the run's folder."""
    from nerfstudio.scripts.train import entrypoint
    from nerfstudio.utils import writer

    folder.mkdir(exist_ok=True)
    method, *options = map(str, args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ns-train", method, "--output-dir", str(folder / "outputs"), *options])
        patch.setattr(writer, "EVENT_WRITERS", [])  # those of earlier runs of this process
        entrypoint()
    (config,) = folder.glob("outputs/*/*/*/config.yml")
    return config.parent


def refused(capsys, *args):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in args])
    err = capsys.readouterr().err
    assert end.value.code not in (0, None)
    assert err.count("\n") == 1, err
    return err


@pytest.fixture(scope="module")
def views():
    mesh = trimesh.creation.capsule(0.5, 0.4, count=[16, 16])
    mesh.apply_translation([0, 0, -0.25])
    colours = (255 * (0.5 + 0.5 * mesh.vertices)).clip(0, 255)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colours.astype(np.uint8))
    return mesh_views(mesh, rig(16, size=(24, 24)))


@pytest.fixture(scope="module")
def blender(views, tmp_path_factory):
    """NeRF's Blender layout with its three files."""
    folder = tmp_path_factory.mktemp("capsule")
    write_views(folder, views.some(range(12)))
    write_views(folder, views.some([12, 13]), "val")
    write_views(folder, views.some([14, 15]), "test")
    return folder


@pytest.fixture(scope="module")
def trained(blender, tmp_path_factory):
    return ns_train(
        tmp_path_factory.mktemp("run"), "fewstep-triplane", "--data", blender, "--max-num-iterations", 50, *SMALL
    )


def test_the_plugin_is_found():
    from nerfstudio.configs.dataparser_configs import all_dataparsers
    from nerfstudio.configs.method_configs import all_methods

    ours = {"fewstep-triplane", "fewstep-distill"}
    assert {e.name for e in entry_points(group="nerfstudio.method_configs")} >= ours
    assert ours <= set(all_methods)
    assert "fewstep-data" in all_dataparsers
    assert {all_methods[name].vis for name in ours} == {"tensorboard"}


def test_the_command_line_loads_neither_torch_nor_nerfstudio():
    code = "import sys; from fewstep_3d import commands; from fewstep.cli import main\ntry: main(['--help'])\n"
    code += "except SystemExit: assert not {'torch', 'nerfstudio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_training_leaves_an_artifact_beside_its_checkpoint(trained):
    scene, config = fewstep.load(trained / "fewstep"), json.loads((trained / "fewstep/config.json").read_text())
    assert isinstance(scene, Scene)
    assert config["provenance"]["iterations"] == 50
    assert config["provenance"]["scores"]["psnr"] > 18
    (file,) = (trained / "nerfstudio_models").iterdir()
    state = torch.load(file, weights_only=True)["pipeline"]
    for name, value in scene.state_dict().items():
        assert torch.equal(value, state[f"_model.scene.{name}"])


def test_an_interrupted_training_has_an_artifact(blender, tmp_path, monkeypatch):
    """It is written at every checkpoint, not at the end alone."""
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

    own = VanillaDataManager.next_train

    def interrupted(self, step):
        if step == 22:
            raise KeyboardInterrupt
        return own(self, step)

    monkeypatch.setattr(VanillaDataManager, "next_train", interrupted)
    run = ns_train(tmp_path, "fewstep-triplane", "--data", blender, "--max-num-iterations", 50, *SMALL)
    assert json.loads((run / "fewstep/config.json").read_text())["provenance"]["iterations"] == 21


def test_a_run_is_exported(trained, tmp_path, capsys):
    out = tmp_path / "a.glb"
    with pytest.raises(SystemExit) as end:
        main(["mesh", "export", "--ns-config", str(trained / "config.yml"), str(out), "--resolution", "32", "--json"])
    assert end.value.code == 0
    mesh = trimesh.load(out, force="mesh", process=False)
    assert mesh.is_watertight
    assert 0.5 < mesh.volume / (np.pi * 0.25 * 0.4 + 4 / 3 * np.pi * 0.125) < 1.5
    assert json.loads(capsys.readouterr().out)["faces"] == len(mesh.faces)


def test_ns_eval_finds_the_same_figure(trained, tmp_path):
    from nerfstudio.scripts.eval import ComputePSNR

    ComputePSNR(trained / "config.yml", tmp_path / "out.json", tmp_path / "pictures").main()
    found = json.loads((tmp_path / "out.json").read_text())["results"]["psnr"]
    at_end = json.loads((trained / "fewstep/config.json").read_text())["provenance"]["scores"]["psnr"]
    assert found == pytest.approx(at_end, abs=3)  # the two test pictures against the two of validation
    assert found > 18
    assert len(list((tmp_path / "pictures").glob("*img*"))) == 2


def test_nerfstudios_own_parser_of_blender_sets_works(blender, tmp_path):
    args = ("--max-num-iterations", 50, *SMALL, "blender-data", "--data", blender)
    run = ns_train(tmp_path, "fewstep-triplane", *args)
    config = json.loads((run / "fewstep/config.json").read_text())
    assert config["provenance"]["scores"]["psnr"] > 16
    # Its scene box is [-1.5, 1.5]^3, which is the cube of the field.
    sdf = fewstep.load(run / "fewstep").field()(torch.tensor([[[0.0, 0.0, z] for z in (0.0, 0.7)]])).sdf[0]
    assert sdf[0] < 0 < sdf[1]


def test_the_bench_has_a_row_of_nerfstudios_components(tmp_path):
    given = ["--size", "8", "--samples", "6", "--sides", "12", "--rounds", "1", "--views", "2"]
    assert bench.main([*given, "--out", str(tmp_path / "t.json")]) == 0
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert rows["nerfstudio"]["speedup_over_nerfstudio"] == 1
    own = rows["nerfstudio"]["forward_backward_s"] / rows["grid 12"]["forward_backward_s"]
    assert rows["grid 12"]["speedup_over_nerfstudio"] == pytest.approx(own)


def test_nerfstudios_components_are_trained_through():
    from fewstep_3d.nerfstudio.components import Components

    peer = Components(16, 2, 8, 12, 4)
    picture = peer.picture(rig(2, size=(6, 6)))
    assert picture.shape == (1, 2, 6, 6, 3)
    picture.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in peer.parameters())


# --- data parser ------------------------------------------------------------------------------------------------------


def parsed(folder, split, **options):
    from fewstep_3d.nerfstudio.data_parser import ViewsParserConfig

    return ViewsParserConfig(data=folder, **options).setup().get_dataparser_outputs(split)


def test_rays_of_nerfstudio_are_ours(blender, views):
    rays = views.some(range(12)).cameras.rays()
    for i in range(12):
        bundle = parsed(blender, "train").cameras.generate_rays(camera_indices=i)
        torch.testing.assert_close(bundle.directions, rays.directions[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(bundle.origins, rays.origins[i], atol=1e-5, rtol=0)


def test_splits(blender, views, tmp_path):
    assert [len(parsed(blender, s).image_filenames) for s in ("train", "val", "test")] == [12, 2, 2]
    assert {p.parent.name for p in parsed(blender, "test").image_filenames} == {"test"}
    write_views(tmp_path, views)
    (tmp_path / "transforms_train.json").rename(tmp_path / "transforms.json")
    train, held = (parsed(tmp_path, s, held_out=4) for s in ("train", "val"))
    assert (len(train.image_filenames), len(held.image_filenames)) == (12, 4)
    assert {*train.image_filenames, *held.image_filenames} == {tmp_path / f"train/r_{i}.png" for i in range(16)}
    assert len(parsed(tmp_path, "train", held_out=0).image_filenames) == 16


def test_all_splits_are_scaled_as_the_training_pictures(blender, tmp_path):
    for split, factor in (("train", 2), ("test", 1)):
        seen = read_views(blender).some(range(4))
        seen.cameras.c2w[:, :3, 3] *= factor
        write_views(tmp_path, seen, split)
    distances = [parsed(tmp_path, s).cameras.camera_to_worlds[:, :, 3].norm(dim=1) for s in ("train", "test")]
    torch.testing.assert_close(torch.stack(distances), torch.tensor([[3.0], [1.5]]).expand(2, 4))
    assert parsed(tmp_path, "test").dataparser_scale == pytest.approx(0.5)


def test_pictures_without_alpha_need_a_background(views, tmp_path):
    write_views(tmp_path, views._replace(mask=None))
    with pytest.raises(SystemExit, match="no alpha channel"):
        parsed(tmp_path, "train")
    assert parsed(tmp_path, "train", background="black").metadata == {"background": 0.0}


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not JSON"), ('{"frames": []}', "no frames"), (None, "no transforms")]
)
def test_bad_transforms_are_one_line(tmp_path, text, words):
    (tmp_path / "data").mkdir()
    if text:
        (tmp_path / "data/transforms.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        ns_train(tmp_path, "fewstep-triplane", "--data", tmp_path / "data")
    assert words in end.value.code
    assert str(tmp_path) in end.value.code
    assert "\n" not in end.value.code


# --- distillation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    torch.manual_seed(0)
    net = ConditionedUNet(8, 8, (1, 2), 1, (), classes=6, views=2)
    look = Rig(views=2, size=8)
    fewstep.save(MultiViewGenerator(Denoiser(net, RectifiedFlow(), U()), DDIM(), Uniform(), 2, look), folder)
    return folder


def test_distillation_leaves_a_generator(teacher, tmp_path, capsys):
    args = ("--max-num-iterations", 3, "--pipeline.datamanager.objects", 2, "--pipeline.model.recipe", "3d/shapes_dmd")
    run = ns_train(tmp_path, "fewstep-distill", "--data", teacher, *args)
    made = fewstep.load(run / "fewstep")
    assert isinstance(made, TriplaneGenerator)
    assert len(made.names) == 6
    (file,) = (run / "nerfstudio_models").iterdir()
    kept = torch.load(file, weights_only=True)
    assert set(kept["optimizers"]) == {"student", "fake"}
    assert all(kept["optimizers"][name]["state"] for name in ("student", "fake"))
    assert kept["pipeline"]["_model.shell.iteration"] == 3
    moved = [not torch.equal(v, kept["pipeline"][f"_model.shell.student.{k}"]) for k, v in made.state_dict().items()]
    assert any(moved)  # the artifact is the average
    assert all(torch.equal(v, kept["pipeline"][f"_model.averaged.{k}"]) for k, v in made.state_dict().items())
    capsys.readouterr()
    assert "fewstep mesh CLASS" in refused(
        capsys, "mesh", "export", "--ns-config", run / "config.yml", tmp_path / "o.ply"
    )


def test_a_resumed_distillation_goes_on_with_its_average(teacher, tmp_path):
    args = ("fewstep-distill", "--data", teacher, "--pipeline.datamanager.objects", 2, "--max-num-iterations")
    first = ns_train(tmp_path / "a", *args, 3)
    again = ns_train(tmp_path / "b", *args, 1, "--load-dir", first / "nerfstudio_models", "--pipeline.model.ema", 0.0)
    (file,) = (again / "nerfstudio_models").iterdir()
    kept = torch.load(file, weights_only=True)["pipeline"]
    assert kept["_model.shell.iteration"] == 4
    old, new = (fewstep.load(run / "fewstep").state_dict() for run in (first, again))
    # Without memory the average is the student, one small step away from where it was.
    assert all(torch.equal(v, kept[f"_model.shell.student.{k}"]) for k, v in new.items())
    assert max(float((v - new[k]).abs().max()) for k, v in old.items()) < 0.02


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "--data is needed"),
        (("--data", "nowhere"), "nowhere"),
        (("--data", "TEACHER", "--pipeline.model.recipe", "3d/none"), "3d/none"),
        (("--data", "TEACHER", "--pipeline.model.recipe", "3d/shapes_prd4"), "looks"),
        (("--data", "TEACHER", "--pipeline.model.recipe", "toy/ring_flow"), "toy/ring_flow"),
    ],
)
def test_bad_distillations_are_one_line(teacher, tmp_path, args, words):
    with pytest.raises(SystemExit) as end:
        ns_train(tmp_path, "fewstep-distill", *(teacher if a == "TEACHER" else a for a in args))
    assert words in end.value.code
    assert "\n" not in end.value.code
