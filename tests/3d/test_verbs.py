"""`fewstep mesh ...` and `turntable`: what they write, and one line for everything that cannot be used."""

import json
import math
from dataclasses import replace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import fewstep
from fewstep.cli import main
from fewstep_3d.bench import renderer as bench
from fewstep_3d.cameras import rig
from fewstep_3d.fitting import Fit, held_out_psnr
from fewstep_3d.mesh_files import read_mesh, write_mesh
from fewstep_3d.mesh_views import mesh_views
from fewstep_3d.scene import Scene
from fewstep_3d.transforms import TransformsError, read_views, write_views
from fewstep_3d.triplane import TriplaneDecoder


def run(*args):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in args])
    return end.value.code


def refused(capsys, *args):
    code = run(*args)
    err = capsys.readouterr().err
    assert code not in (0, None)
    assert err.count("\n") == 1, err
    return err


@pytest.fixture
def ball(tmp_path):
    mesh = trimesh.creation.icosphere(3, 0.7)
    colours = (255 * (0.5 + 0.5 * mesh.vertices)).clip(0, 255)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colours.astype(np.uint8))
    mesh.export(tmp_path / "ball.ply")
    return tmp_path / "ball.ply"


@pytest.fixture
def sphere(tmp_path):
    torch.manual_seed(0)
    fewstep.save(Scene(TriplaneDecoder(8, 16, 1), 16), tmp_path / "sphere")
    return tmp_path / "sphere"


def blender(folder, views=8, size=24, alpha=True, **change):
    """A folder in NeRF's Blender layout, of a coloured ball."""
    mesh = trimesh.creation.icosphere(3, 0.7)
    cams = rig(views, size=(size, size))
    seen = mesh_views(mesh, cams)
    meta = {"camera_angle_x": math.radians(40.0), "frames": []}
    for i, (rgb, mask) in enumerate(zip(seen.colours, seen.mask, strict=True)):
        straight = rgb / mask[..., None].clamp_min(1e-6)
        image = torch.cat([straight, mask[..., None]], -1) if alpha else rgb
        Image.fromarray((image.clamp(0, 1) * 255).round().byte().numpy()).save(folder / f"r_{i}.png")
        meta["frames"].append({"file_path": f"./r_{i}", "transform_matrix": cams.c2w[i].tolist()})
    (folder / "transforms.json").write_text(json.dumps(meta | change))
    return folder


def test_an_object_is_exported_in_every_format(sphere, tmp_path, capsys):
    for kind in ("glb", "obj", "ply", "stl"):
        assert run("mesh", "export", sphere, tmp_path / f"a.{kind}", "--resolution", 24, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        mesh = read_mesh(tmp_path / f"a.{kind}")
        assert (len(mesh.faces), mesh.is_watertight) == (told["faces"], told["watertight"]) == (told["faces"], True)
    assert run("mesh", "export", sphere, tmp_path / "b.glb", "--faces", 200, "--texture", 64, "--resolution", 24) == 0
    out = read_mesh(tmp_path / "b.glb")
    assert out.visual.material.baseColorTexture.size == (64, 64)


def test_a_mesh_is_fitted_judged_and_turned(ball, tmp_path, capsys):
    given = ["--iterations", 25, "--views", 8, "--held-out", 2, "--size", 24, "--resolution", 32]
    assert run("mesh", "fit", ball, tmp_path / "a.glb", "--artifact", tmp_path / "a", *given, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["watertight"]
    assert told["psnr"] > 15
    assert run("mesh", "eval", tmp_path / "a.glb", ball, "--json", "--side", 32, "--align") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["iou"] > 0.85
    assert figures["chamfer_l1"] > figures["floor"] > 0
    assert run("turntable", tmp_path / "a", tmp_path / "a.gif", "--frames", 4, "--size", 32) == 0
    assert iio.imread(tmp_path / "a.gif").shape == (4, 32, 32, 3)
    assert run("turntable", ball, tmp_path / "a.mp4", "--frames", 4, "--size", 32, "--channels", "normal") == 0
    assert iio.imread(tmp_path / "a.mp4", plugin="pyav").shape == (4, 32, 32, 3)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_y_up_file_is_turned_before_it_is_compared(tmp_path, capsys):
    write_mesh(tmp_path / "a.glb", trimesh.creation.box((0.2, 0.4, 1.0)))
    trimesh.creation.box((0.2, 1.0, 0.4)).export(tmp_path / "b.obj")
    found = {}
    for turned in ((), ("--y-up",)):
        assert run("mesh", "eval", tmp_path / "a.glb", tmp_path / "b.obj", "--samples", 500, "--json", *turned) == 0
        found[turned] = json.loads(capsys.readouterr().out)["iou"]
    assert found[()] < 0.7
    assert found[("--y-up",)] > 0.95


def test_a_mesh_is_itself(ball, capsys):
    assert run("mesh", "eval", ball, ball, "--samples", 500, "--side", 16, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["iou"], figures["chamfer_l1"], figures["f0.01"]) == (1, 0, 1)


def test_a_blender_folder_is_fitted(tmp_path, capsys):
    folder = blender(tmp_path)
    views = read_views(folder)
    assert views.cameras.focal[0, 0].item() == pytest.approx(12 / math.tan(math.radians(20)))
    assert torch.allclose(views.cameras.c2w, rig(8).c2w, atol=1e-5)
    assert run("mesh", "fit", folder, tmp_path / "a.glb", "--iterations", 12, "--held-out", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["psnr"] > 10


def test_written_views_are_read_again(tmp_path):
    mesh = trimesh.creation.icosphere(3, 0.7)
    seen = mesh_views(mesh, rig(5, 55.0, (20, 24)))
    for behind in (0.0, 1.0):
        colours = seen.colours + (1 - seen.mask[..., None]) * behind
        write_views(tmp_path, seen._replace(colours=colours, background=behind))
        found = read_views(tmp_path, "white" if behind else "black")
        for a, b in ((found.colours, colours), (found.mask, seen.mask)):
            torch.testing.assert_close(a, b, atol=0.6 / 255, rtol=0)
        assert found.background == behind
        for name in ("c2w", "focal", "centre"):
            torch.testing.assert_close(getattr(found.cameras, name), getattr(seen.cameras, name), atol=1e-4, rtol=0)
    write_views(tmp_path, seen._replace(mask=None))
    torch.testing.assert_close(read_views(tmp_path, "black").colours, seen.colours, atol=0.6 / 255, rtol=0)


def test_cameras_that_the_blender_layout_cannot_hold_are_one_line(tmp_path):
    seen = mesh_views(trimesh.creation.icosphere(1, 0.7), rig(2, size=(8, 8)))
    cameras = replace(seen.cameras, centre=seen.cameras.centre + 1)
    with pytest.raises(TransformsError, match="one focal length"):
        write_views(tmp_path, seen._replace(cameras=cameras))
    assert not list(tmp_path.iterdir())


def test_nerfstudio_intrinsics_are_scaled_with_the_pictures(tmp_path):
    folder = blender(tmp_path, fl_x=60.0, fl_y=50.0, cx=20.0, cy=26.0, w=48, h=48)
    views = read_views(folder)
    assert views.cameras.focal[3].tolist() == [30.0, 25.0]
    assert views.cameras.centre[3].tolist() == [10.0, 13.0]


def test_a_fit_with_a_seed_is_reproducible():
    views = mesh_views(trimesh.creation.icosphere(2, 0.6), rig(4, size=(16, 16)))
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        scene = Scene(TriplaneDecoder(4, 8, 1), 16)
        Fit(3, rays=256, sides=(16,))(scene, views, seed=5)
        made.append(scene)
    assert torch.equal(made[0].planes, made[1].planes)
    assert set(held_out_psnr(made[0], views, Fit(3, sides=(16,)))) == {"psnr", "psnr_normals"}


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\n", "empty"),
        ("v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"),
        ("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "at one place"),
        ("this is no mesh", "empty"),
    ],
)
def test_bad_meshes_are_one_line(tmp_path, capsys, text, words):
    (tmp_path / "bad.obj").write_text(text)
    for verb in (["mesh", "export"], ["mesh", "fit"], ["turntable"]):
        out = tmp_path / ("o.gif" if verb == ["turntable"] else "o.glb")
        err = refused(capsys, *verb, tmp_path / "bad.obj", out)
        assert "bad.obj" in err
        assert not out.exists()
    assert words in err


def test_huge_meshes_are_refused(ball, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fewstep_3d.mesh_files.MOST_FACES", 1000)
    assert "at most 1000" in refused(capsys, "mesh", "export", ball, tmp_path / "o.glb")


def test_open_meshes_have_no_iou_but_distances(ball, tmp_path, capsys):
    hat = read_mesh(ball)
    hat.update_faces(np.arange(len(hat.faces)) > 3)
    hat.export(tmp_path / "hat.ply")
    assert run("mesh", "eval", tmp_path / "hat.ply", ball, "--samples", 200) == 0
    assert capsys.readouterr().out.startswith("no IoU: open; Chamfer-L1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": []}, "no frames"),
        ({"frames": [{"file_path": "r_0"}]}, "transform_matrix"),
        ({"frames": [{"file_path": "r_0", "transform_matrix": [[1, 2], [3, 4]]}]}, "(4, 4)"),
        ({"frames": [{"file_path": "r_0", "transform_matrix": [[0] * 4] * 4}]}, "singular"),
        ({"frames": [{"file_path": "gone", "transform_matrix": [[0] * 4] * 4}]}, "gone.png"),
        ({"camera_angle_x": "wide"}, "camera_angle_x"),
        ({"k1": 0.1}, "distortion"),
    ],
)
def test_wrong_transforms_are_one_line(tmp_path, capsys, change, words):
    folder = blender(tmp_path, 2, 8, **change)
    assert words in refused(capsys, "mesh", "fit", folder, tmp_path / "o.glb")
    assert not (tmp_path / "o.glb").exists()


def test_other_bad_folders_are_one_line(tmp_path, capsys):
    assert "transforms.json" in refused(capsys, "mesh", "fit", tmp_path, tmp_path / "o.glb")
    (tmp_path / "transforms.json").write_text("{")
    assert "not JSON" in refused(capsys, "mesh", "fit", tmp_path, tmp_path / "o.glb")
    (tmp_path / "transforms.json").unlink()
    blender(tmp_path, 2, 8, alpha=False)
    assert "no alpha channel" in refused(capsys, "mesh", "fit", tmp_path, tmp_path / "o.glb")
    assert read_views(tmp_path, "white").mask is None
    Image.new("RGBA", (8, 8)).save(tmp_path / "r_1.png")
    assert "some pictures have an alpha" in refused(capsys, "mesh", "fit", tmp_path, tmp_path / "o.glb")
    Image.new("RGBA", (4, 9)).save(tmp_path / "r_1.png")
    assert "different sizes" in refused(capsys, "mesh", "fit", tmp_path, tmp_path / "o.glb")


def test_impossible_options_are_one_line(sphere, ball, tmp_path, capsys):
    out = tmp_path / "o.glb"
    for args, words in (
        (["mesh", "export", sphere, tmp_path / "o.xyz"], ".glb"),
        (["mesh", "export", sphere, out, "--resolution", 2], "--resolution"),
        (["mesh", "export", sphere, out, "--faces", 1], "--faces"),
        (["mesh", "export", tmp_path, out], str(tmp_path)),
        (["mesh", "export", tmp_path / "none.glb", out], "no such file"),
        (["mesh", "export", out], "--ns-config"),
        (["mesh", "export", ball, out, "--ns-config", ball], "--ns-config"),
        (["mesh", "export", "--ns-config", tmp_path / "config.yml", out], "no such file"),
        (["mesh", "export", out, "--ns-config", ball], "no artifact"),
        (["mesh", "fit", ball, out, "--views", 0], "--views"),
        (["mesh", "eval", ball, ball, "--samples", 0], "--samples"),
        (["turntable", ball, tmp_path / "o.avi"], ".gif or .mp4"),
        (["turntable", ball, tmp_path / "o.gif", "--frames", 1], "frames"),
        (["mesh", "export", sphere, out, "--nonsense"], "--nonsense"),
    ):
        assert words in refused(capsys, *args)
    assert not out.exists()


def test_an_object_without_a_surface_is_one_line(sphere, tmp_path, capsys):
    scene = fewstep.load(sphere)
    with torch.no_grad():
        scene.decoder.shape_last[-1].bias.fill_(9.0)
    fewstep.save(scene, sphere)
    assert "outside of it everywhere" in refused(capsys, "mesh", "export", sphere, tmp_path / "o.glb")


def test_the_bench_of_renderers_fills_its_table(tmp_path):
    given = ["--size", "8", "--samples", "6", "--sides", "12", "--rounds", "1", "--views", "2"]
    assert bench.main([*given, "--out", str(tmp_path / "t.json")]) == 0
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert set(rows) - {"nerfstudio"} == {"direct", "grid 12"}
    assert rows["grid 12"]["agreement_db"] > 20
    assert rows["direct"]["speedup_forward_backward"] == 1
