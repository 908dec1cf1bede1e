"""Inverse problems without training: gradients in closed form on Gaussians, limits in which they are plain sampling."""

import itertools

import pytest
import torch
from worlds import correlated, normal

from fewstep.grids import Uniform
from fewstep.guidance.copaint import copaint, fitted, visits
from fewstep.guidance.red_diff import red_diff, red_term
from fewstep.guidance.stsl import stsl, surrogate
from fewstep.paths import VP, RectifiedFlow
from fewstep.sampling import sample
from fewstep.solvers import DDIM, Ancestral
from fewstep.toy import Mixture, gaussian

PATH = VP()
GRID = Uniform(end=1e-3)(PATH, 10)
GOAL = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, tol=1e-10):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def distance(x0):
    return (x0 - GOAL).square().sum(1)


def plane(path, rho=0.8):
    """A Gaussian in the plane of unit variances and correlation rho around (1, -1)."""
    covs = torch.tensor([[[1.0, rho], [rho, 1.0]]], dtype=torch.float64)
    return Mixture(path, torch.tensor([[1.0, -1.0]], dtype=torch.float64), covs)


# RED-diff


def test_the_gradient_of_red_is_the_residual_of_the_denoiser():
    world, mu, noise = correlated(PATH), normal(6, 3).requires_grad_(), normal(6, 3, seed=1)

    def denoise(x, t):
        assert not torch.is_grad_enabled()
        return world(x, t)

    slope = torch.autograd.grad(red_term(denoise, mu, 0.4, PATH, noise).sum(), mu)[0]
    a, _, s = PATH.levels(0.4)
    close(slope, (world(a * mu.detach() + s * noise, 0.4).eps - noise) / 3)


def test_red_diff_finds_what_is_not_measured_from_what_is():
    """At one level the prior's pull vanishes where Sigma^-1 (mu - m) is 0 in the free coordinate, Sigma = a^2 C + s^2."""
    grid = torch.linspace(0.3, 0.29, 301, dtype=torch.float64)
    start = torch.zeros(200, 2, dtype=torch.float64)
    mu = red_diff(
        plane(PATH),
        start,
        PATH,
        grid,
        lambda x0: 50 * (x0[:, 0] - 2).square(),
        rate=0.02,
        weight=lambda rho: 1.0,
        generator=seeded(),
    )
    a = PATH.levels(0.295)[0]
    assert (mu[:, 0] - 2).abs().max() < 0.05
    assert mu[:, 1].mean().item() == pytest.approx(-1 + 0.8 * a**2, abs=0.03)
    assert not mu.requires_grad


def test_the_first_step_of_red_diff_is_adams_on_both_terms():
    """Adam's first step is rate * sign of the gradient; the weight decides which term wins."""
    world, x0, noise = correlated(PATH), normal(6, 3), torch.randn(6, 3, generator=seeded(), dtype=torch.float64)
    a, _, s = PATH.levels(0.6)
    pull = (world(a * x0 + s * noise, 0.6).eps - noise) / 3
    for prior in (0.0, 0.25, 1e6):
        slope = 2 * (x0 - GOAL) + prior * (s / a) ** 2 * pull
        ours = red_diff(
            world, x0, PATH, torch.tensor([0.6, 0.5]), distance, 0.1, prior, lambda rho: rho**2, generator=seeded()
        )
        close(ours, x0 - 0.1 * slope.sign(), 1e-5)


# CoPaint


def test_without_descent_copaint_is_ddim():
    path = RectifiedFlow()
    world, x, grid = correlated(path), normal(6, 3), Uniform()(path, 8)
    close(copaint(world, x, path, grid, distance, inner=0), sample(world, x, path, DDIM(), grid))


@pytest.mark.parametrize("ahead", [1, 3])
def test_descent_follows_the_gradient_through_the_denoiser(ahead):
    """On one Gaussian x0 is affine in the state: x0 = slope x + const, by one evaluation or by several steps of DDIM."""
    world, x = gaussian(PATH, 0.4, 0.7, dim=3), normal(6, 3)

    def x0(x):
        return (
            sample(world, x, PATH, DDIM(), torch.linspace(0.6, 0.0, ahead + 1, dtype=torch.float64))
            if ahead > 1
            else world(x, 0.6).x0
        )

    slope = x0(torch.ones(1, 3, dtype=torch.float64)) - x0(torch.zeros(1, 3, dtype=torch.float64))
    first = x - 0.05 * slope * 2 * (x0(x) - GOAL)
    close(fitted(world, x, PATH, 0.6, distance, 0.05, inner=1, ahead=ahead), first)
    second = first - 0.05 * (slope * 2 * (x0(first) - GOAL) + 0.3 * 2 * (first - x))
    close(fitted(world, x, PATH, 0.6, distance, 0.05, inner=2, keep=0.3, ahead=ahead), second)


def test_a_rate_that_is_too_large_never_raises_the_objective_of_a_sample():
    world, x = correlated(PATH), normal(40, 3)
    for rate in (1e-2, 1.0, 100.0):
        new = fitted(world, x, PATH, 0.5, distance, rate, inner=3, keep=0.01)
        objective = distance(world(new, 0.5).x0) + 0.01 * (new - x).square().sum(1)
        before = distance(world(x, 0.5).x0)
        assert (objective <= before).all()
        assert (objective < (1 - 1e-3) * before).float().mean() > 0.9


def test_time_travel_goes_through_the_grid_as_repaint_does():
    assert visits(4, 2, 1) == [0, 1, 2, 3, 4]
    # Back by 2 from the clean end, node 4; the noisier start of a jump, node 2, is not jumped from.
    assert visits(4, 2, 2) == [0, 1, 2, 3, 4, 3, 2, 3, 4]
    for n, jump, repeats in ((12, 3, 2), (20, 10, 3), (7, 1, 2)):
        order = visits(n, jump, repeats)
        assert order[0] == 0
        assert order[-1] == n
        assert all(abs(b - a) == 1 for a, b in itertools.pairwise(order))
        assert len(order) - 1 == n + 2 * jump * (repeats - 1) * len(range(0, n - jump, jump))


def test_copaint_keeps_what_is_known_and_fills_in_the_rest():
    world, x = plane(PATH), normal(300, 2)
    known = 2.0
    made = copaint(
        world, x, PATH, GRID, lambda x0: (x0[:, 0] - known).square(), rate=0.5, repeats=2, jump=2, generator=seeded()
    )
    assert (made[:, 0] - known).abs().max() < 0.1
    # Of the conditional law N(-1 + .8 (2 - 1), 1 - .8^2), to the tolerance of a heuristic.
    assert made[:, 1].mean().item() == pytest.approx(-0.2, abs=0.25)
    assert 0.3 < made[:, 1].std().item() < 0.9


# STSL


def test_the_second_order_is_the_mean_loss_of_x0_given_the_state():
    """E[|x0 - goal|^2 | x_t] of a mixture, by its components; all eight sign vectors make the trace exact."""
    world, x, t, dim = correlated(PATH), normal(5, 3), 0.5, 3
    a, _, s = PATH.levels(t)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=dim)), dtype=torch.float64)
    j = torch.stack([surrogate(world, x, t, PATH, distance, v.expand_as(x), width=1e-5) for v in signs]).mean(0)
    eye = torch.eye(dim, dtype=torch.float64)
    covs = world.q @ torch.diag_embed(world.ev) @ world.q.mT
    mean, r = torch.zeros(5, dtype=torch.float64), []
    for w, m, c in zip(world.weights, world.means, covs, strict=True):
        marginal = torch.distributions.MultivariateNormal(a * m, a**2 * c + s**2 * eye)
        r.append(w.log() + marginal.log_prob(x))
    r = torch.stack(r).softmax(0)
    for k, (m, c) in enumerate(zip(world.means, covs, strict=True)):
        gain = a * c @ torch.linalg.inv(a**2 * c + s**2 * eye)
        centre, spread = m + (x - a * m) @ gain.T, c - a * gain @ c
        mean = mean + r[k] * ((centre - GOAL).square().sum(1) + spread.trace())
    close(j + (s / a) ** 2 * dim, mean, 1e-5)


def test_the_first_order_alone_is_the_loss():
    world, x, probe = correlated(PATH), normal(5, 3), normal(5, 3, seed=1)
    close(surrogate(world, x, 0.5, PATH, distance, probe, curvature=0.0), distance(world(x, 0.5).x0))
    flow = RectifiedFlow()  # at a = 0
    close(surrogate(correlated(flow), x, 1.0, flow, distance, probe), distance(correlated(flow)(x, 1.0).x0))


def test_stsl_without_a_rate_is_its_solver():
    world, x = correlated(PATH), normal(6, 3)
    ours = stsl(world, x, PATH, GRID, distance, rate=0.0, inner=0, solver=DDIM())
    close(ours, sample(world, x, PATH, DDIM(), GRID))
    noisy = stsl(world, x, PATH, GRID, distance, rate=0.0, inner=0, generator=seeded(3))
    close(noisy, sample(world, x, PATH, Ancestral(), GRID, generator=seeded(3)))


def test_stsl_lowers_the_loss():
    world, x = correlated(PATH), normal(200, 3)
    plain = sample(world, x, PATH, Ancestral(), GRID, generator=seeded())
    steered = stsl(world, x, PATH, GRID, distance, rate=0.1, generator=seeded())
    assert distance(steered).mean() < 0.3 * distance(plain).mean()
