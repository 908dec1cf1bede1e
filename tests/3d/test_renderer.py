"""The renderer against closed forms: constant densities, spheres, occlusion, empty fields, tabulated against exact fields, gradients."""

import math

import pytest
import torch
from torch.nn.functional import interpolate

from fewstep_3d.cameras import Rays, orbit
from fewstep_3d.fields import Grid, Sphere, Values, corners, slopes, tabulated
from fewstep_3d.metrics import iou, psnr
from fewstep_3d.opacity import NeuS, NeuSCosine, VolSDF, point_weights
from fewstep_3d.renderer import Renderer, flat
from fewstep_3d.samplers import Importance, Stratified, cube, stratified
from fewstep_3d.triplane import ConcatenatedLayer, FirstLayer, ScaledSigmoid, TriplaneDecoder, WideSigmoid, sampled

VIEW = orbit(torch.tensor([20.0]), 25.0, 3.0, 40.0, (64, 64))


def decoder(seed=0, **kw):
    torch.manual_seed(seed)
    net = TriplaneDecoder(**({"channels": 6, "width": 16, "layers": 2} | kw))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def smooth_planes(channels=6, side=48, waves=3, batch=1, seed=0):
    """A band-limited random field."""
    rough = torch.randn(3 * batch, channels, waves, waves, generator=torch.Generator().manual_seed(seed))
    return interpolate(rough, size=(side, side), mode="bicubic", align_corners=True).unflatten(0, (batch, 3))


def one_ray(z=0.0):
    return Rays(torch.tensor([[[3.0, 0.0, z]]]), torch.tensor([[[-1.0, 0.0, 0.0]]]))


# --- quadrature -------------------------------------------------------------------------------------------------------


def test_a_constant_density_decays_exponentially():
    s, length, n = 1.7, 1.3, 65
    tau = torch.full((1, n - 1), s * length / (n - 1))
    w, passed = point_weights(tau)
    assert passed.item() == pytest.approx(math.exp(-s * length), abs=1e-7)
    assert w.sum().item() == pytest.approx(1 - math.exp(-s * length), abs=1e-7)


def test_volsdf_of_a_constant_distance_is_a_constant_density():
    opacity, t = VolSDF(10.0), torch.linspace(0, 2, 33, dtype=torch.float64)
    sdf = torch.full_like(t, 0.1)
    tau = opacity.depth(sdf, t)
    assert tau.sum().item() == pytest.approx(2 * 10 * 0.5 * math.exp(-1), rel=1e-12)
    assert opacity.density(torch.tensor(-5.0)).item() == pytest.approx(10, rel=1e-6)


def test_the_discrete_formula_of_neus_is_met():
    k, f = 30.0, torch.tensor([0.2, 0.05, -0.02, -0.1, 0.03], dtype=torch.float64)
    phi = torch.sigmoid(k * f)
    alpha = ((phi[:-1] - phi[1:]) / phi[:-1]).clamp(0, 1)
    torch.testing.assert_close(1 - torch.exp(-NeuS(k).depth(f, f)), alpha)


def test_the_cosine_form_is_the_consecutive_one_for_linear_distances():
    t = torch.linspace(0, 1, 20, dtype=torch.float64)
    sdf, slope = 0.4 - 0.7 * t, torch.full_like(t, -0.7)
    torch.testing.assert_close(NeuSCosine(50.0).depth(sdf, t, slope), NeuS(50.0).depth(sdf, t))
    with pytest.raises(ValueError, match="needs normals"):
        NeuSCosine(50.0).depth(sdf, t)


@pytest.mark.parametrize(
    ("opacity", "least", "error"),
    [(NeuS(100.0), 0.99, 0.002), (NeuSCosine(100.0), 0.99, 0.002), (VolSDF(80.0), 0.85, 0.01)],
)
def test_an_analytic_sphere_has_its_silhouette_and_depth(opacity, least, error):
    cams = orbit(torch.tensor([20.0]), 25.0, 3.0, 40.0, (96, 96))
    out = Renderer(opacity, Stratified(64), normals=True).views(Sphere(0.5), cams)
    rays = cams.rays()
    along = -(rays.origins * rays.directions).sum(-1)
    miss = (rays.origins.square().sum(-1) - along**2).clamp_min(0).sqrt()
    hit = miss < 0.5
    both = (out.opacity[0] > 0.5) & hit
    assert (both.sum() / ((out.opacity[0] > 0.5) | hit).sum()).item() >= least
    core = miss < 0.45
    depth = along - (0.25 - miss**2).clamp_min(0).sqrt()
    assert (out.depth[0] - depth)[core].abs().mean().item() <= error
    normal = torch.nn.functional.normalize(rays.origins + depth[..., None] * rays.directions, dim=-1)
    assert (out.normals[0] - normal)[core].abs().mean() < 0.05


def test_the_first_of_two_opaque_slabs_hides_the_second():
    red_first = lambda sign: (
        lambda p: Values(
            (p[..., 0].abs() - 0.3).abs() - 0.1,
            torch.stack([(sign * p[..., 0] > 0).float(), (sign * p[..., 0] < 0).float()], -1),
        )
    )
    renderer = Renderer(NeuS(500.0), Stratified(200))
    front, swapped = (renderer(red_first(s), one_ray()).features[0, 0] for s in (1, -1))
    torch.testing.assert_close(front, torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(swapped, torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("background", [0.0, 0.25, torch.tensor([0.1, 0.7, 1.0])])
def test_an_empty_field_is_the_background_exactly(background):
    empty = lambda p: Values(torch.full(p.shape[:-1], 5.0), torch.ones(*p.shape[:-1], 3))
    out = Renderer(NeuS(100.0)).views(empty, VIEW, background=background)
    assert torch.equal(out.features, torch.as_tensor(background).expand_as(out.features))
    assert (out.opacity == 0).all()


def test_rays_that_miss_the_cube_see_nothing():
    near, far = cube(one_ray(1.5))
    assert near.item() == far.item()
    near, far = cube(one_ray())
    assert (near.item(), far.item()) == pytest.approx((2.0, 4.0))
    assert Renderer()(Sphere(0.5), one_ray(1.5)).opacity.item() == 0


# --- samplers ---------------------------------------------------------------------------------------------------------


def test_stratified_samples_stay_in_their_parts():
    near, far = torch.tensor([1.0]), torch.tensor([3.0])
    t = stratified(near, far, 8, torch.Generator().manual_seed(0))
    assert ((t - 1) / 2 * 8).floor().long().tolist() == [list(range(8))]
    torch.testing.assert_close(stratified(near, far, 4, None), torch.tensor([[1.25, 1.75, 2.25, 2.75]]))


def test_importance_samples_gather_at_the_surface_and_are_sorted():
    rays = one_ray()
    t = Importance(64, fine=64)(Sphere(0.5), rays, NeuS(100.0), None)
    assert (t.diff() >= 0).all()
    assert ((t - 2.5).abs() < 0.1).sum() > 60


def test_few_samples_where_they_matter_are_as_good_as_many():
    fine = Renderer(NeuS(200.0), Stratified(1024)).views(Sphere(0.5), VIEW).opacity
    error = lambda sampler: (Renderer(NeuS(200.0), sampler).views(Sphere(0.5), VIEW).opacity - fine).abs().mean()
    assert error(Importance(32, fine=32)) < 0.7 * error(Stratified(64))


# --- triplanes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FirstLayer, ConcatenatedLayer])
def test_the_first_layer_commutes_with_the_sum_over_planes(kind):
    torch.manual_seed(0)
    first, planes = kind(6, 10), smooth_planes(side=33)
    on_grid = first.on_grid(planes, 17)
    points = corners(17, planes).view(1, -1, 3)
    torch.testing.assert_close(on_grid.reshape(1, -1, 10), first.at(planes, points), atol=1e-5, rtol=0)
    features = [sampled(planes[:, k], points[..., axes]) for k, axes in enumerate(((0, 1), (0, 2), (1, 2)))]
    f = sum(features) if kind is FirstLayer else torch.cat(features, -1)
    torch.testing.assert_close(first.linear(f), first.at(planes, points), atol=1e-5, rtol=0)


def test_tabulated_values_are_exact_at_the_corners():
    net, planes = decoder(), smooth_planes(batch=2)
    grid, points = net.tabulate(planes, 20), corners(20, planes).view(1, -1, 3).expand(2, -1, -1)
    exact, ours = net(planes, points), grid(points)
    torch.testing.assert_close(ours.sdf, exact.sdf, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.features, exact.features, atol=1e-5, rtol=0)
    again = tabulated(net.field(planes), 20, planes, objects=2)
    torch.testing.assert_close(again.values, grid.values, atol=1e-5, rtol=0)


def test_pictures_through_the_table_are_those_of_the_exact_field():
    net, planes = decoder(), smooth_planes()
    exact = Renderer(NeuS(20.0)).views(net.field(planes), VIEW, background=1.0).features
    ours = Renderer(NeuS(20.0)).views(net.tabulate(planes, 32), VIEW, background=1.0).features
    assert exact.std() > 0.01
    assert psnr(ours, exact).item() > 55


def test_a_ramp_on_a_plane_varies_along_its_two_axes_alone():
    points = torch.rand(1, 100, 3, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    line = torch.linspace(-1, 1, 32)
    for k, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        planes = torch.zeros(1, 3, 2, 32, 32)
        planes[0, k] = torch.stack(torch.meshgrid(line, line, indexing="ij"))
        first = FirstLayer(2, 2)
        with torch.no_grad():
            first.linear.weight.copy_(torch.eye(2))
            first.linear.bias.zero_()
        torch.testing.assert_close(first.at(planes, points), points[..., [a, b]])


def test_turning_the_planes_turns_the_picture():
    """About z by 90 degrees: f'(x, y, z) = f(y, -x, z), so xy'[x, y] = xy[y, -x], xz'[x, z] = yz[-x, z], yz' = xz."""
    net, planes = decoder(), smooth_planes()
    xy, xz, yz = planes[0]
    with torch.no_grad():  # the colours tell the planes apart; one weight for all of them does not
        w = net.colour_first.linear.weight.unflatten(1, (3, 6))
        w.copy_(w.mean(1, keepdim=True).expand_as(w))
    turned = torch.stack([xy.transpose(1, 2).flip(1), yz.flip(1), xz])[None]
    a = Renderer(NeuS(20.0)).views(net.field(planes), orbit(torch.tensor([10.0]), 25.0, size=(24, 24)))
    b = Renderer(NeuS(20.0)).views(net.field(turned), orbit(torch.tensor([100.0]), 25.0, size=(24, 24)))
    torch.testing.assert_close(a.features, b.features, atol=1e-4, rtol=0)


def test_every_parameter_is_reached_by_one_picture():
    net, planes = decoder(), smooth_planes().requires_grad_()
    for field in (net.tabulate(planes, 24), net.field(planes)):
        out = Renderer(NeuS(20.0), Stratified(24), normals=True).views(field, VIEW.resized(16, 16))
        parts = [planes, *net.parameters()]
        grads = torch.autograd.grad(out.features.sum() + out.opacity.sum() + out.normals.square().sum(), parts)
        for g in grads:
            assert g.isfinite().all()
            assert g.abs().max() > 0
        assert all(grads[0][0, k].abs().max() > 0 for k in range(3))


def test_nothing_outside_of_the_rays_is_reached():
    net, planes = decoder(), smooth_planes().requires_grad_()
    rays = one_ray(0.9)
    (g,) = torch.autograd.grad(Renderer(NeuS(20.0))(net.field(planes), rays).features.sum(), planes)
    assert g[0, 1].abs().max() > 0
    assert g[0, 1, :, :, :40].abs().max() == 0  # z below .7
    assert g[0, 0, :, :, :20].abs().max() == 0  # y far from 0


def test_the_double_gradient_of_sampling_is_right():
    g = torch.Generator().manual_seed(0)
    plane = torch.randn(1, 2, 5, 5, dtype=torch.float64, generator=g).requires_grad_()
    at = (torch.rand(1, 7, 2, dtype=torch.float64, generator=g) * 1.6 - 0.8).requires_grad_()
    assert torch.autograd.gradcheck(sampled, (plane, at))
    assert torch.autograd.gradgradcheck(sampled, (plane, at))


def test_slopes_and_tabulated_slopes_of_a_sphere_are_unit_normals():
    points = torch.tensor([[[0.3, 0.2, -0.4]]])
    _, slope = slopes(Sphere(0.5), points)
    torch.testing.assert_close(slope, torch.nn.functional.normalize(points, dim=-1))
    grid = tabulated(Sphere(0.5), 65, points)
    near = grid.slope()[0, :, 10:20, 10:20, 10:20]
    torch.testing.assert_close(near.norm(dim=0), torch.ones(10, 10, 10), atol=1e-3, rtol=0)


def test_the_scaled_sigmoid_keeps_its_slope_where_the_plain_one_loses_it():
    z = torch.tensor(5.0, requires_grad=True)
    (scaled,) = torch.autograd.grad(ScaledSigmoid(0.1)(z), z)
    (plain,) = torch.autograd.grad(torch.sigmoid(z), z)
    assert scaled > 0.02
    assert plain < 0.007
    assert WideSigmoid()(torch.tensor([-20.0, 20.0])).tolist() == pytest.approx([-0.001, 1.001], abs=1e-6)
    with pytest.raises(ValueError, match="alpha"):
        ScaledSigmoid(0.0)


def test_an_untrained_field_is_near_its_sphere():
    torch.manual_seed(0)
    net = TriplaneDecoder(8, 16)
    values = net(torch.zeros(1, 3, 8, 4, 4), torch.randn(1, 50, 3))
    assert values.features.shape == (1, 50, 3)
    inside = net.tabulate(torch.zeros(1, 3, 8, 4, 4), 24).values[:, 0] < 0
    ball = corners(24, inside.float()).norm(dim=-1)[None] < 0.5
    assert iou(inside, ball).item() > 0.8


def test_rays_of_several_objects_stay_apart():
    both = Grid(torch.cat([tabulated(Sphere(r), 32, torch.zeros(())).values for r in (0.3, 0.7)]))
    cams = orbit(torch.tensor([0.0, 90.0, 0.0, 90.0]), 0.0, size=(20, 20))
    out = Renderer(NeuS(64.0)).views(both, cams, objects=2)
    assert out.features.shape == (2, 2, 20, 20, 3)
    area = out.opacity.mean((2, 3))
    assert (area[0] < 0.4 * area[1]).all()
    assert flat(cams.rays(), 2).origins.shape == (2, 800, 3)


def test_pictures_in_pieces_are_the_whole():
    grid = tabulated(Sphere(0.5), 32, torch.zeros(()))
    renderer = Renderer(NeuS(64.0), normals=True)
    a, b = renderer.views(grid, VIEW), renderer.image(grid, VIEW, chunk=1000)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x[0], y)
