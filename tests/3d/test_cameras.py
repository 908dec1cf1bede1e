"""Cameras: rays and projection undo each other, conventions go both ways, bad cameras are refused in one line."""

import math

import pytest
import torch

from fewstep_3d.cameras import BLENDER, OPENCV, OPENGL, CameraError, Cameras, look_at, orbit, pinhole, rig

CONVENTIONS = {"blender": BLENDER, "opengl": OPENGL, "opencv": OPENCV}


def cameras(size=(9, 12)):
    return orbit(torch.tensor([0.0, 77.0, 200.0], dtype=torch.float64), 20.0, 2.5, 50.0, size)


def test_projecting_a_point_of_a_ray_gives_the_centre_of_its_pixel():
    cams = cameras()
    rays = cams.rays()
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(3, 9, 12, dtype=torch.float64))
    points = (rays.origins + 1.7 * rays.directions).flatten(1, 2)
    uv, depth = cams.project(points)
    v, u = torch.meshgrid(torch.arange(9) + 0.5, torch.arange(12) + 0.5, indexing="ij")
    wanted = torch.stack([u, v], -1).double().flatten(0, 1).expand(3, -1, -1)
    torch.testing.assert_close(uv, wanted, atol=1e-5, rtol=0)
    assert (depth > 0).all()


def test_poses_are_rotations_and_look_at_the_origin():
    c2w = cameras().c2w
    r = c2w[:, :3, :3]
    torch.testing.assert_close(r.mT @ r, torch.eye(3, dtype=torch.float64).expand(3, 3, 3))
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(3, dtype=torch.float64))
    uv, depth = cameras().project(torch.zeros(1, 3, dtype=torch.float64))
    torch.testing.assert_close(uv[:, 0], torch.tensor([6.0, 4.5], dtype=torch.float64).expand(3, 2))
    torch.testing.assert_close(depth, torch.full((3, 1), 2.5, dtype=torch.float64))


def test_the_front_camera_is_on_x_and_sees_y_on_its_right_and_z_up():
    cams = orbit(torch.tensor([0.0]), 0.0, 3.0, 40.0, (10, 10))
    torch.testing.assert_close(cams.c2w[0, :3, 3], torch.tensor([3.0, 0.0, 0.0]))
    uv, _ = cams.project(torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]))
    assert uv[0, 0, 0] > 5
    assert uv[0, 1, 1] < 5


@pytest.mark.parametrize("straight", [90.0, -90.0])
def test_cameras_at_the_poles_are_rotations(straight):
    r = orbit(torch.tensor([30.0]), straight).c2w[0, :3, :3]
    torch.testing.assert_close(torch.linalg.det(r), torch.tensor(1.0))


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions_go_both_ways(name):
    c2w, convention = cameras().c2w, CONVENTIONS[name]
    torch.testing.assert_close(convention.to_ours(convention.from_ours(c2w)), c2w)
    torch.testing.assert_close(convention.from_ours(convention.to_ours(c2w)), c2w)


def test_opencv_twice_is_the_identity_and_projects_by_its_own_formula():
    cams = cameras()
    torch.testing.assert_close(OPENCV.from_ours(OPENCV.from_ours(cams.c2w)), cams.c2w)
    points = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.3
    w2c = torch.linalg.inv(OPENCV.from_ours(cams.c2w))
    local = torch.einsum("vij,nj->vni", w2c[:, :3, :3], points) + w2c[:, None, :3, 3]
    theirs = local[..., :2] / local[..., 2:] * cams.focal[:, None] + cams.centre[:, None]
    torch.testing.assert_close(cams.project(points)[0], theirs)


def test_opengl_has_y_up():
    ours = cameras().c2w
    theirs = OPENGL.from_ours(ours)
    torch.testing.assert_close(theirs[:, 1, 3], ours[:, 2, 3])  # height
    torch.testing.assert_close(theirs[:, 2, 3], -ours[:, 1, 3])
    torch.testing.assert_close(torch.linalg.det(theirs[:, :3, :3]), torch.ones(3, dtype=torch.float64))


def test_blender_is_ours():
    assert torch.equal(BLENDER.to_ours(cameras().c2w), cameras().c2w)


def test_other_pixels_see_the_same():
    small, large = cameras((8, 8)), cameras((8, 8)).resized(16, 32)
    points = torch.tensor([[0.1, 0.2, -0.3]], dtype=torch.float64)
    a, b = small.project(points)[0], large.project(points)[0]
    torch.testing.assert_close(b, a * torch.tensor([4.0, 2.0], dtype=torch.float64))


def test_the_field_of_view_is_that_of_the_height():
    cams = pinhole(look_at(torch.tensor([[3.0, 0.0, 0.0]])), math.radians(90), (10, 20))
    torch.testing.assert_close(cams.focal, torch.full((1, 2), 5.0))


def test_a_rig_is_spread_over_the_sphere():
    position = rig(200).c2w[:, :3, 3] / 3
    torch.testing.assert_close(position.norm(dim=1), torch.ones(200))
    assert position[:, :2].mean(0).abs().max() < 0.02
    assert position[:, 2].min() < -0.8 < 0.9 < position[:, 2].max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.c2w[1].mul_(0), "camera 1 is singular"),
        (lambda c: c.c2w[2, :3, :3].mul_(2), "camera 2 is singular"),
        (lambda c: c.c2w[0, :3, 0].mul_(-1), "camera 0 is singular"),
        (lambda c: c.c2w[0, 0, 3].fill_(float("nan")), "camera 0 has numbers that are not finite"),
        (lambda c: c.focal[1].fill_(0), "camera 1 has a focal length"),
    ],
)
def test_bad_cameras_are_refused(change, words):
    cams = cameras()
    parts = [x.clone() for x in (cams.c2w, cams.focal, cams.centre)]
    good = Cameras(*parts, cams.size)
    change(good)
    with pytest.raises(CameraError, match=words):
        Cameras(*parts, cams.size)


@pytest.mark.parametrize("make", [lambda: rig(0), lambda: look_at(torch.zeros(1, 3)), lambda: cameras()[[]]])
def test_no_view_and_no_direction_are_refused(make):
    with pytest.raises(CameraError):
        make()
