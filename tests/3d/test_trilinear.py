"""Trilinear interpolation: exact for what is linear in every coordinate, its own adjoint, and the same as grid_sample's in every way."""

import pytest
import torch
from torch.nn.functional import grid_sample

from fewstep_3d.fields import Grid, corners
from fewstep_3d.trilinear import cells, trilinear

B, C, G, N = 3, 2, 7, 500


def drawn(seed=0, dtype=torch.float64, reach=1.3):
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(B, C, G, G, G, generator=g, dtype=dtype)
    points = reach * (2 * torch.rand(B, N, 3, generator=g, dtype=dtype) - 1)
    return values, points


def reference(values, points):
    at = points.flip(-1)[:, None, None]
    return grid_sample(values, at, padding_mode="border", align_corners=True)[:, :, 0, 0].transpose(1, 2)


def test_what_is_linear_in_every_coordinate_is_exact():
    f = lambda p: 1 + p[..., 0] - 2 * p[..., 1] * p[..., 2] + 3 * p[..., 0] * p[..., 1] * p[..., 2]
    values = f(corners(G, torch.zeros((), dtype=torch.float64))).expand(B, 1, G, G, G)
    _, points = drawn(reach=1.0)
    torch.testing.assert_close(trilinear(values, points)[..., 0], f(points))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_those_of_grid_sample(dtype):
    values, points = drawn(dtype=dtype)
    grad = torch.randn(B, N, C, dtype=dtype)
    own, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    a, b = trilinear(own, points), reference(theirs, points)
    torch.testing.assert_close(a, b)
    a.backward(grad)
    b.backward(grad)
    torch.testing.assert_close(own.grad, theirs.grad)
    torch.testing.assert_close(trilinear(values[:1], points[:1]), reference(values, points)[:1])  # one object alone


def test_the_gradient_is_the_adjoint():
    """<T v, g> = <v, T' g>."""
    values, points = drawn()
    grad = torch.randn(B, N, C, dtype=torch.float64)
    leaf = values.clone().requires_grad_()
    (found,) = torch.autograd.grad(trilinear(leaf, points), leaf, grad)
    torch.testing.assert_close((found * values).sum(), (trilinear(values, points) * grad).sum())


def test_corners_faces_and_what_lies_outside():
    values, _ = drawn()
    at = corners(G, values).view(1, -1, 3).expand(B, -1, -1)
    torch.testing.assert_close(trilinear(values, at), values.flatten(2).transpose(1, 2))
    out = trilinear(values, torch.tensor([[[9.0, -9.0, 9.0]]], dtype=torch.float64).expand(B, 1, 3))
    torch.testing.assert_close(out[:, 0], values[:, :, -1, 0, -1])


def test_weights_are_shares_and_rows_those_of_the_own_object():
    _, points = drawn()
    rows, weights = cells(points, G)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(B * N, dtype=torch.float64))
    own = torch.arange(B).repeat_interleave(N)[:, None]
    assert ((rows // G**3) == own).all()


def test_points_that_are_trained_have_their_gradient():
    values, points = drawn(reach=0.95)
    a, b = points.clone().requires_grad_(), points.clone().requires_grad_()
    trilinear(values, a).sum().backward()
    reference(values, b).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_the_eikonal_term_of_a_distance_is_zero_and_of_its_double_is_one():
    plane = corners(G, torch.zeros((), dtype=torch.float64))[..., 0].expand(B, 1, G, G, G)
    assert Grid(plane).eikonal() == pytest.approx(0, abs=1e-12)
    assert Grid(2 * plane).eikonal() == pytest.approx(1)
    flat = torch.zeros(1, 1, G, G, G, dtype=torch.float64, requires_grad=True)
    Grid(flat).eikonal().backward()
    assert flat.grad.isfinite().all()  # where there is no slope there is no direction
