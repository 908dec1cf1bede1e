import math
from dataclasses import dataclass

import pytest
import torch
from worlds import PATHS, assert_golden, correlated, golden_case, golden_ids, golden_mixture, interior, normal, over

from fewstep.paths import VP, Path, ResidualShift
from fewstep.toy import Mixture, gaussian, ring

ALL = pytest.mark.parametrize("path", over(PATHS))


def close(ours, theirs, tol=1e-9):
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)


def world_on(path, n):
    return correlated(path, normal(n, 3, seed=7) if path.anchored else None)


@dataclass(frozen=True)
class Level(Path):
    """One level (a, s) at every time."""

    a: float
    s: float

    def schedule(self, t):
        return torch.full_like(t, self.a), torch.zeros_like(t), torch.full_like(t, self.s)


@pytest.mark.parametrize("case_id", golden_ids("exact_model"))
def test_golden_denoiser_and_density(case_id):
    case, array = golden_case(case_id)
    a, s, x = case["a"], case["s"], array("x")
    world = golden_mixture(case["mixture"], Level(a, s))
    estimate = world(x, 0.5)
    assert_golden(estimate.x0, case, array("out"))
    assert_golden(estimate.eps, case, (x - a * array("out")) / s)
    assert_golden(world.log_density(x, 0.5), case, array("logp"))


@ALL
def test_score_is_the_gradient_of_the_log_density(path):
    t, world = interior(path, 8), world_on(path, 8)
    x = path.sample(world.draw(8, torch.Generator().manual_seed(0)), normal(8, 3), t, world.y).requires_grad_()
    (gradient,) = torch.autograd.grad(world.log_density(x, t).sum(), x)
    close(world.score(x.detach(), t), gradient)


@ALL
def test_estimates_obey_tweedie(path):
    """score = -eps / s, a E[x0] = x - b y + s^2 score."""
    t, world = interior(path, 8), world_on(path, 8)
    x = path.sample(normal(8, 3), normal(8, 3, seed=1), t, world.y)
    estimate, score = world(x, t), world.score(x, t)
    a, b, s = (v[:, None] for v in path.schedule(t))
    close(estimate.eps, -s * score)
    close(a * estimate.x0, x - (0 if world.y is None else b * world.y) + s**2 * score)


def test_estimate_is_the_posterior_mean_by_quadrature():
    """E[x0 | x_t] and p_t by integrating p(x0) N(x_t; a x0, s^2) on a fine grid, without the closed form."""
    path, t = VP(), 0.35
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means, stds = torch.tensor([-1.0, 1.5], dtype=torch.float64), torch.tensor([0.3, 0.5], dtype=torch.float64)
    world = Mixture(path, means[:, None], (stds**2)[:, None, None], weights)
    a, _, s = (v.item() for v in path.schedule(torch.tensor(t, dtype=torch.float64)))
    x0 = torch.linspace(-8, 8, 20_001, dtype=torch.float64)

    def pdf(x, mean, std):
        return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))

    prior = sum(w * pdf(x0, m, sd) for w, m, sd in zip(weights, means, stds, strict=True))
    for x in (-2.0, 0.1, 1.7):
        joint = prior * pdf(torch.tensor(x, dtype=torch.float64), a * x0, s)
        evidence = torch.trapezoid(joint, x0)
        state = torch.tensor([[x]], dtype=torch.float64)
        close(world(state, t).x0[0, 0], torch.trapezoid(joint * x0, x0) / evidence)
        close(world.log_density(state, t)[0], evidence.log())


def test_float_and_per_sample_times_agree():
    path = ResidualShift()
    world, x = world_on(path, 5), normal(5, 3)
    times = torch.full((5,), 6.3, dtype=torch.float64)
    assert torch.equal(world(x, 6.3).x0, world(x, times).x0)
    assert torch.equal(world.log_density(x, 6.3), world.log_density(x, times))


def test_draws_have_the_moments_of_the_mixture():
    n, world = 200_000, correlated(VP())
    draws = world.draw(n, torch.Generator().manual_seed(0))
    w, mu = world.weights, world.means
    covs = world.q @ torch.diag_embed(world.ev) @ world.q.mT
    mean = (w[:, None] * mu).sum(0)
    cov = (w[:, None, None] * (covs + mu[:, :, None] * mu[:, None, :])).sum(0) - mean[:, None] * mean
    assert ((draws.mean(0) - mean).abs() < 4 * (cov.diagonal() / n).sqrt()).all()
    products = (draws - mean)[:, :, None] * (draws - mean)[:, None, :]
    assert ((products.mean(0) - cov).abs() < 4 * products.std(0) / math.sqrt(n)).all()


def test_draws_come_from_the_given_generator():
    world = correlated(VP())
    one, two = (world.draw(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)


@ALL
def test_flow_map_maps_marginals(path):
    """Affine and whitening-preserving: the map of the mean is the mean, of the covariance the covariance."""
    y = normal(3, seed=7) if path.anchored else None
    root = normal(3, 3, seed=1)
    cov, mu = root @ root.T + 0.1 * torch.eye(3, dtype=torch.float64), normal(3, seed=2)
    world = Mixture(path, mu[None], cov[None], y=y)
    t, s = interior(path, 2, seed=4).tolist()

    def moments(time):
        a, b, sd = path.schedule(torch.tensor(time, dtype=torch.float64))
        return a * mu + (0 if y is None else b * y), a**2 * cov + sd**2 * torch.eye(3, dtype=torch.float64)

    mean_t, cov_t = moments(t)
    mean_s, cov_s = moments(s)
    origin = world.flow_map(mean_t[None], t, s)[0]
    close(origin, mean_s)
    jacobian = world.flow_map(mean_t + torch.eye(3, dtype=torch.float64), t, s) - origin  # rows: images of unit vectors
    close(jacobian.T @ cov_t @ jacobian, cov_s)


@ALL
def test_flow_maps_compose_and_invert(path):
    y = normal(6, 3, seed=7) if path.anchored else None
    world, x = gaussian(path, 0.4, torch.tensor([0.3, 1.0, 2.0]), dim=3, y=y), normal(6, 3)
    r, s, t = interior(path, 3, seed=5).tolist()
    close(world.flow_map(world.flow_map(x, t, s), s, r), world.flow_map(x, t, r))
    close(world.flow_map(world.flow_map(x, t, s), s, t), x)
    close(world.flow_map(x, t, t), x, tol=1e-12)


@ALL
def test_flow_map_follows_the_velocity(path):
    """d/ds of the map is u = a' x0 + b' y + s' eps of the exact estimate."""
    y, h = normal(6, 2, seed=7) if path.anchored else None, 1e-5
    world, x = gaussian(path, 0.4, 0.8, dim=2, y=y), normal(6, 2)
    t = interior(path, 1, seed=6).item()
    rate = (world.flow_map(x, t, t + h) - world.flow_map(x, t, t - h)) / (2 * h)
    estimate = world(x, t)
    close(path.velocity(estimate.x0, estimate.eps, torch.full((6,), t, dtype=torch.float64), y), rate, tol=1e-5)


def test_flow_map_needs_one_component():
    with pytest.raises(ValueError, match="8 components"):
        ring(VP()).flow_map(normal(2, 2), 0.5, 0.1)


def test_ring_is_equal_modes_on_a_circle():
    world = ring(VP(), modes=5, radius=3.0, std=0.2)
    close(world.means.norm(dim=1), torch.full((5,), 3.0, dtype=torch.float64))
    close(world.means.sum(0), torch.zeros(2, dtype=torch.float64))
    # At the clean end the estimate of a mode's centre is that centre, and all modes are equally likely.
    close(world(world.means, 1e-4).x0, world.means, tol=1e-4)
    density = world.log_density(world.means, 0.3)
    close(density, density.mean().expand(5))


@pytest.mark.parametrize("world", ["2-d, cfg 1", "2-d, cfg 7.5", "64-d, cfg 7.5", "3072-d, cfg 7.5"])
def test_mixtures_at_one_time_are_the_mixtures(world):
    from fewstep.bench.worlds import mixture_worlds

    found = mixture_worlds(VP())[world]
    x = found.start(4, torch.Generator().manual_seed(0))
    for t in (1.0, 0.5, 0.01):
        one, each = found.denoise(x, t), found.denoise(x, torch.full((4,), t, dtype=torch.float64))
        torch.testing.assert_close(one.x0, each.x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.eps, each.eps, rtol=1e-9, atol=1e-9)
