"""Surfaces of analytic shapes, files there and back, textures, carving, metrics."""

import base64
import io
import math
import re

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from fewstep_3d.cameras import orbit
from fewstep_3d.carving import carved
from fewstep_3d.fields import FieldError, Grid, Sphere, Values, tabulated
from fewstep_3d.mesh_files import MeshError, normalised, read_mesh, write_mesh
from fewstep_3d.mesh_views import mesh_views
from fewstep_3d.meshes import attached, coloured, decimated, extracted, largest, without_crumbs
from fewstep_3d.metrics import distances, diversity, iou, occupied, pairwise_iou, psnr, signed_distance, surface_samples
from fewstep_3d.texture import dilated, texels, textured


def torus(p):
    ring = p[..., :2].norm(dim=-1) - 0.5
    return Values(torch.stack([ring, p[..., 2]], -1).norm(dim=-1) - 0.2, p[..., :0])


def two_balls(p):
    far, near = (p - torch.tensor([0.5, 0, 0])).norm(dim=-1), (p + torch.tensor([0.4, 0, 0])).norm(dim=-1)
    return Values(torch.minimum(far - 0.15, near - 0.4), p[..., :0])


def ramp(p):
    """A ball whose colour tells the place."""
    return Values(p.norm(dim=-1) - 0.5, 0.5 + 0.5 * p)


@pytest.mark.parametrize(("side", "volume", "radius"), [(32, 0.012, 1e-3), (64, 0.003, 3e-4)])
def test_the_surface_of_a_sphere(side, volume, radius):
    mesh = extracted(Sphere(0.5), side)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(math.pi / 6, rel=volume)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.5).max() < radius


def test_the_surface_of_a_torus_has_a_hole():
    mesh = extracted(torus, 48)
    assert (mesh.euler_number, mesh.is_watertight) == (0, True)
    assert mesh.volume == pytest.approx(2 * math.pi**2 * 0.5 * 0.04, rel=0.02)


def test_normals_are_the_fields_gradients_and_are_written(tmp_path):
    mesh = extracted(torus, 48)
    p = torch.tensor(mesh.vertices, requires_grad=True)
    (gradient,) = torch.autograd.grad(torus(p).sdf.sum(), p)
    assert ((mesh.vertex_normals * gradient.numpy()).sum(1)).min() > 0.99
    write_mesh(tmp_path / "torus.glb", largest(mesh))
    (part,) = trimesh.load_scene(tmp_path / "torus.glb", process=False).geometry.values()
    written = part.vertex_normals  # y up: (x, z, -y)
    assert np.allclose(written, mesh.vertex_normals[:, [0, 2, 1]] * [1, 1, -1], atol=1e-5)


@pytest.mark.parametrize(("offset", "words"), [(3.0, "outside of it everywhere"), (-3.0, "inside of it everywhere")])
def test_a_field_without_a_surface_is_an_error_that_says_so(offset, words):
    with pytest.raises(FieldError, match=words):
        extracted(lambda p: Values(p.norm(dim=-1) + offset, p[..., :0]), 16)


def test_nan_is_an_error():
    with pytest.raises(FieldError, match="not finite"):
        extracted(lambda p: Values(p[..., 0] / 0 * 0, p[..., :0]), 16)
    with pytest.raises(FieldError, match="corners per axis"):
        extracted(Sphere(), 1)


def test_the_volume_of_attached_vertices_grows_by_the_area():
    radius = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    mesh = extracted(Sphere(0.5), 48)
    v = attached(torch.tensor(mesh.vertices), lambda p: p.norm(dim=-1) - radius)
    torch.testing.assert_close(v.detach(), torch.tensor(mesh.vertices))
    a, b, c = v[torch.tensor(mesh.faces)].unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum() / 6
    (slope,) = torch.autograd.grad(volume, radius)
    assert slope.item() == pytest.approx(4 * math.pi * 0.25, rel=0.02)


def test_components_and_decimation():
    mesh = extracted(two_balls, 40)
    assert largest(mesh).bounds[1, 0] < 0.1
    assert len(without_crumbs(mesh, 0.01).faces) == len(mesh.faces)
    assert len(without_crumbs(mesh, 0.4).faces) == len(largest(mesh).faces)
    ball = extracted(ramp, 40)
    small = decimated(ball, 400)
    assert abs(len(small.faces) - 400) <= 4
    assert small.is_watertight
    wanted = 255 * (0.5 + 0.5 * small.vertices)
    assert np.abs(small.visual.vertex_colors[:, :3] - wanted).max() < 15
    with pytest.raises(FieldError, match="at least 4"):
        decimated(ball, 2)


def test_a_closed_mesh_stays_closed_however_thin():
    """Plain decimation leaves edges of this ring with four faces, or with one."""
    ring = trimesh.creation.torus(1, 0.02, major_sections=64, minor_sections=16)
    for faces in (60, 100):
        plain = ring.simplify_quadric_decimation(face_count=faces)
        assert not trimesh.Trimesh(plain.vertices, plain.faces, process=True).is_watertight
        small = decimated(ring, faces)
        assert small.is_watertight
        assert len(small.faces) < len(ring.faces) / 4


@pytest.mark.parametrize("kind", ["glb", "obj", "ply", "stl"])
def test_files_there_and_back(tmp_path, kind):
    mesh = extracted(lambda p: Values((p * torch.tensor([1.0, 2.0, 3.0])).norm(dim=-1) - 0.9, 0.5 + 0.5 * p), 24)
    write_mesh(tmp_path / f"a.{kind}", mesh)
    back = read_mesh(tmp_path / f"a.{kind}")
    assert (len(back.vertices), len(back.faces)) == (len(mesh.vertices), len(mesh.faces))
    assert np.abs(back.bounds - mesh.bounds).max() < 1e-5
    assert back.volume == pytest.approx(mesh.volume, rel=1e-4)
    if kind != "stl":
        order = np.lexsort(back.vertices.round(4).T), np.lexsort(mesh.vertices.round(4).T)
        a, b = (m.visual.vertex_colors[o].astype(int) for m, o in zip((back, mesh), order, strict=True))
        assert np.abs(a - b).max() <= 1
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{kind}"]


def test_a_page_holds_the_mesh_and_its_viewer(tmp_path):
    """The glb inside is the file that would be written beside it; the page loads nothing; it is not read back."""
    mesh = trimesh.creation.box((0.2, 0.4, 1.0))
    write_mesh(tmp_path / "a.html", mesh)
    page = (tmp_path / "a.html").read_text()
    inside = base64.b64decode(max(re.findall(r"[A-Za-z0-9+/=]{100,}", page), key=lambda s: s.startswith("Z2xURg")))
    shown = trimesh.load(io.BytesIO(inside), file_type="glb", force="mesh")
    write_mesh(tmp_path / "a.glb", mesh)
    assert np.allclose(shown.bounds, trimesh.load(tmp_path / "a.glb", force="mesh").bounds)
    assert len(shown.faces) == 12
    assert not re.findall(r"""(src|href)=["']?https?:""", page)
    with pytest.raises(MeshError, match="not .html"):
        read_mesh(tmp_path / "a.html")


def test_glb_is_y_up(tmp_path):
    box = trimesh.creation.box((0.2, 0.4, 1.0))
    write_mesh(tmp_path / "a.glb", box)
    raw = trimesh.load(tmp_path / "a.glb", force="mesh", process=False)
    assert np.ptp(raw.vertices, axis=0).tolist() == pytest.approx([0.2, 1.0, 0.4])


def test_other_files_may_be_y_up_too(tmp_path):
    trimesh.creation.box((0.2, 1.0, 0.4)).export(tmp_path / "a.ply")
    assert np.ptp(read_mesh(tmp_path / "a.ply", y_up=True).vertices, axis=0).tolist() == pytest.approx([0.2, 0.4, 1.0])


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_a_baked_texture_shows_the_colours_of_the_field(tmp_path, kind):
    mesh = decimated(extracted(ramp, 32), 600)
    colour = lambda points, face, weights: 0.5 + 0.5 * points
    out = textured(mesh, colour, 256)
    write_mesh(tmp_path / f"a.{kind}", out)
    back = read_mesh(tmp_path / f"a.{kind}")
    cams = orbit(torch.tensor([0.0, 120.0]), 20.0, size=(32, 32))
    views = mesh_views(back, cams, rays=1)
    hit = views.mask == 1
    rays = cams.rays()
    along = -(rays.origins * rays.directions).sum(-1)
    miss = rays.origins.square().sum(-1) - along**2
    depth = along - (0.25 - miss).clamp_min(0).sqrt()
    wanted = 0.5 + 0.5 * (rays.origins + depth[..., None] * rays.directions)
    core = hit & (miss < 0.2)
    assert (views.colours - wanted)[core].abs().mean() < 0.02
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_texels_lie_in_their_triangles():
    triangles = np.array([[[1.0, 1.0], [30.0, 2.0], [3.0, 25.0]], [[40.2, 40.2], [40.4, 40.2], [40.3, 40.9]]])
    face, weights, where = texels(triangles, 64)
    assert set(face) <= {0, 1}
    assert np.abs((triangles[face] * weights[..., None]).sum(1) - where - 0.5).max() < 1e-9
    cross = np.cross(np.append(triangles[0, 1] - triangles[0, 0], 0), np.append(triangles[0, 2] - triangles[0, 0], 0))
    assert (face == 0).sum() == pytest.approx(abs(cross[2]) / 2, rel=0.05)


def test_dilation_fills_the_neighbours():
    image, filled = np.zeros((5, 5, 3), np.float32), np.zeros((5, 5), bool)
    image[2, 2], filled[2, 2] = 1, True
    assert (dilated(image, filled, 1)[..., 0] > 0).sum() == 5
    assert (dilated(image, filled, 2)[..., 0] > 0).sum() == 13


# --- carving ----------------------------------------------------------------------------------------------------------


def test_silhouettes_of_a_ball_carve_the_ball():
    cams = orbit(torch.arange(12) * 30.0, torch.tensor([0.0, 40.0, -40.0, 75.0] * 3), size=(64, 64))
    ball = extracted(Sphere(0.5), 48)
    hull = carved(cams, mesh_views(ball, cams).mask, 64)
    assert iou(hull.values[0, 0] < 0, occupied(ball, 64)).item() > 0.93
    assert extracted(hull).is_watertight
    with pytest.raises(ValueError, match="masks"):
        carved(cams, torch.zeros(3, 8, 8))


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_distances_of_a_set_to_itself_vanish():
    p = np.random.default_rng(0).normal(size=(300, 3))
    d = distances(p, np.random.default_rng(1).permutation(p))
    assert (d.chamfer_l1, d.chamfer_l2) == (0, 0)
    assert set(d.f_score.values()) == {1.0}
    q = p + 0.1 * np.random.default_rng(2).normal(size=p.shape)
    assert distances(p, q) == distances(q, p)


def test_distances_of_concentric_spheres_are_the_gap():
    a, b = (surface_samples(trimesh.creation.icosphere(4, r), 40_000) for r in (0.5, 0.53))
    d = distances(a, b)
    assert d.chamfer_l1 == pytest.approx(0.03, rel=0.03)
    assert d.f_score[0.02] == 0
    assert d.f_score[0.05] == 1


def test_iou_of_boxes_is_a_ratio_of_volumes():
    boxes = torch.zeros(3, 10, 10, 10, dtype=torch.bool)
    boxes[0, :4], boxes[1, 2:6], boxes[2, 6:] = True, True, True
    assert iou(boxes[0], boxes[1]).item() == pytest.approx(1 / 3)
    table = pairwise_iou(boxes, boxes)
    torch.testing.assert_close(table.diagonal(), torch.ones(3, dtype=torch.float64))
    assert table[0, 2] == 0
    assert diversity(boxes) == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert diversity(boxes[:1]) == 0


def test_psnr_of_a_known_error():
    a = torch.zeros(2, 4, 4, 3)
    assert psnr(a, a + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)).tolist() == pytest.approx([20, 40], abs=1e-4)


def test_signed_distances_of_a_ball():
    ball = trimesh.creation.icosphere(4, 0.5)
    points = np.random.default_rng(0).uniform(-0.9, 0.9, (500, 3))
    wanted = np.linalg.norm(points, axis=1) - 0.5
    assert np.abs(signed_distance(ball, points) - wanted).max() < 0.01


def test_open_meshes_have_no_inside():
    hat = trimesh.creation.icosphere(2, 0.5)
    hat.update_faces(np.arange(len(hat.faces)) > 3)
    with pytest.raises(MeshError, match="open .* boundary edges"):
        occupied(hat, 8)


def test_normalising_fits_the_cube():
    mesh = normalised(trimesh.creation.box((4.0, 2.0, 1.0), trimesh.transformations.translation_matrix([9, 9, 9])))
    assert mesh.bounds.tolist() == [pytest.approx([-0.75, -0.375, -0.1875]), pytest.approx([0.75, 0.375, 0.1875])]


def test_views_of_a_sphere_are_those_of_the_renderer(tmp_path):
    from fewstep_3d.opacity import NeuS
    from fewstep_3d.renderer import Renderer
    from fewstep_3d.samplers import Stratified

    cams = orbit(torch.tensor([0.0, 100.0]), 20.0, size=(48, 48))
    seen = mesh_views(coloured(trimesh.creation.icosphere(5, 0.5), torch.full((10242, 3), 0.5)), cams, rays=3)
    ours = Renderer(NeuS(256.0), Stratified(192), normals=True).views(
        tabulated(Sphere(0.5, (0.5,) * 3), 64, torch.zeros(())), cams
    )
    assert (seen.mask - ours.opacity[0]).abs().mean() < 0.01
    assert (seen.normals - ours.normals[0]).abs().mean() < 0.01
    assert (seen.colours - ours.features[0]).abs().mean() < 0.01


def test_a_grid_is_continued_by_its_faces():
    grid = Grid(torch.arange(8.0).view(1, 1, 2, 2, 2))
    values = grid(torch.tensor([[[2.0, 2.0, 2.0], [-1.0, -1.0, 1.0]]]))
    assert values.sdf.tolist() == [[7.0, 1.0]]


def test_no_picture_is_needed_for_a_plain_colour():
    mesh = trimesh.creation.box((1, 1, 1))
    mesh.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), image=Image.new("RGB", (2, 2), (255, 0, 0)))
    seen = mesh_views(mesh, orbit(torch.tensor([0.0]), 0.0, size=(9, 9)), 1)
    assert seen.colours[0, 4, 4].tolist() == pytest.approx([1, 0, 0])
