"""SuperDiff: official numbers, the conditions that define its weights, its density estimate against exact ones."""

import math

import pytest
import torch
from golden_cases import Golden
from golden_families.superdiff import superposition
from worlds import GOLDEN, correlated, normal

from fewstep.guidance.superdiff import And, Or, superdiff
from fewstep.likelihood import sde
from fewstep.paths import VP, RectifiedFlow
from fewstep.toy import Mixture, gaussian

PATH, DIM = VP(), 3


def close(ours, theirs, tol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)


def worlds(path=PATH):
    covs = 0.3 * torch.eye(DIM, dtype=torch.float64).expand(2, DIM, DIM)
    return correlated(path), Mixture(path, normal(2, DIM, seed=5), covs), gaussian(path, 0.3, 0.8, dim=DIM)


def grid(n, end=0.02, start=1.0):
    return torch.linspace(start, end, n + 1, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_sde(model, x, path, times, generator):
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        f, g2, level = sde(path, t)
        score = -model(x, t).eps / level
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        x = x - (t - s) * (f * x - g2 * score) + (g2 * (t - s)) ** 0.5 * noise
    return x


def test_official_numbers():
    file = GOLDEN / "solvers_dev.json"
    if not file.is_file():
        pytest.skip(f"no golden vectors at {GOLDEN}")
    cases = [c for c in Golden(file).cases() if c["family"] == "superdiff"]
    assert len(cases) >= 2
    for case in cases:
        for what, ours, official in superposition(case):
            torch.testing.assert_close(
                ours, official, rtol=case["rtol"], atol=case["atol"], msg=lambda m, w=what: f"{w}: {m}"
            )


@pytest.mark.parametrize("mixing", [Or(), And()])
@pytest.mark.parametrize("models", [1, 2, 3])
def test_equal_models_are_the_plain_sde(mixing, models):
    world, x, times = correlated(PATH), normal(8, DIM), grid(20)
    done = superdiff([world] * models, x, PATH, times, mixing, seeded())
    close(done.x, plain_sde(world, x, PATH, times, seeded()))
    close(done.kappa, torch.full_like(done.kappa, 1 / models))


def test_models_that_differ_by_rounding_are_equal():
    """Their difference has no direction: it must not steer."""
    world, x, times = correlated(PATH), normal(8, DIM), grid(20)

    class Rounded:
        def __call__(self, x, t):
            e = world(x, t)
            return type(e)(e.x0, e.eps * (1 + 1e-16 * normal(*x.shape, seed=3)) + 2e-16)

    done = superdiff([world, Rounded()], x, PATH, times, And(), seeded())
    close(done.x, plain_sde(world, x, PATH, times, seeded()), tol=1e-8)


@pytest.mark.parametrize("models", [2, 3])
def test_and_keeps_densities_level(models):
    done = superdiff(worlds()[:models], normal(50, DIM), PATH, grid(50), And(), seeded())
    assert (done.log_q - done.log_q[0]).abs().max() < 1e-8
    close(done.kappa.sum(1), torch.ones_like(done.kappa[:, 0]), tol=1e-8)


def test_two_models_have_the_closed_form():
    scores, noise, drift = normal(2, 7, DIM), normal(7, DIM, seed=1), 0.3
    one, two = scores
    step = drift * two + noise  # dz of model 2 alone, plus f z dt
    d = one - two
    k = -(-drift / 2 * (one.square().sum(1) - two.square().sum(1)) + (step * d).sum(1)) / (drift * d.square().sum(1))
    close(And().kappa(scores, torch.zeros(2, 7), drift, noise), torch.stack([k, 1 - k]))


def test_clipping_bounds_the_weights():
    free = superdiff(worlds()[:2], normal(50, DIM), PATH, grid(20), And(), seeded())
    clipped = superdiff(worlds()[:2], normal(50, DIM), PATH, grid(20), And(clip=2.0), seeded())
    assert free.kappa.abs().max() > 10
    assert clipped.kappa.abs().max() <= 2.5
    close(clipped.kappa.sum(1), torch.ones_like(clipped.kappa[:, 0]))


def test_or_follows_density_temperature_and_bias():
    log_q = torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    scores, noise = normal(2, 2, DIM), normal(2, DIM)
    close(Or().kappa(scores, log_q, 0.1, noise)[0], torch.tensor([0.5, 1 / (1 + math.exp(-2))], dtype=torch.float64))
    close(Or(0.0).kappa(scores, log_q, 0.1, noise), torch.full((2, 2), 0.5, dtype=torch.float64))
    biased = Or(bias=(math.log(3.0), 0.0)).kappa(scores, log_q, 0.1, noise)[:, 0]
    close(biased, torch.tensor([0.75, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("path", [VP(), RectifiedFlow()], ids=["vp", "rf"])
def test_accumulated_densities_are_exact_to_the_root_of_the_step(path):
    models, x = worlds(path)[:2], normal(200, DIM)
    start = 1.0 if path == VP() else 0.95

    def rms(n):
        times = grid(n, end=0.2, start=start)
        done = superdiff(models, x, path, times, Or(), seeded())
        ends = [m.log_density(done.x, 0.2) - m.log_density(x, start) for m in models]
        return (done.log_q - torch.stack(ends)).square().mean().sqrt().item()

    coarse, fine = rms(40), rms(640)
    assert fine < 0.7
    assert math.log2(coarse / fine) / 4 == pytest.approx(0.5, abs=0.15)


def test_the_union_visits_the_modes_of_both():
    cov = 0.02 * torch.eye(1, dtype=torch.float64).expand(2, 1, 1)
    left, right = (Mixture(PATH, torch.tensor(m, dtype=torch.float64)[:, None], cov) for m in ([-2.0, 0.0], [0.0, 2.0]))
    union = superdiff([left, right], normal(300, 1), PATH, grid(150, end=0.01), Or(), seeded()).x
    shares = [((union - m).abs() < 0.6).double().mean().item() for m in (-2.0, 0.0, 2.0)]
    assert min(shares) > 0.15
    assert sum(shares) > 0.98


def test_the_intersection_of_two_gaussians_is_where_they_are_equal():
    """N(m, I), N(-m, I): log q_1 - log q_2 = 2 a <x, m>/(a^2 + s^2) is kept, so <x, m> stays 0; the rest is free."""
    dim, n = 4, 150
    m = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    q = [Mixture(PATH, sign * m[None], torch.eye(dim, dtype=torch.float64)[None]) for sign in (1, -1)]
    x = normal(300, dim)
    done = superdiff(q, x, PATH, grid(n, end=0.01), And(), seeded())
    ratios = [q[0].log_density(v, t) - q[1].log_density(v, t) for v, t in ((x, 1.0), (done.x, 0.01))]
    # Both estimates err alike: linear scores make the difference of their errors O(dt).
    assert (ratios[1] - ratios[0]).abs().max() < 0.2
    assert done.x[:, 0].abs().max() < 0.1
    assert superdiff(q, x, PATH, grid(n, end=0.01), Or(), seeded()).x[:, 0].abs().mean() > 1.5
    spread = done.x[:, 1:].std(0)
    assert ((spread - 1).abs() < 0.15).all()


def test_the_anchor_moves_along():
    from fewstep.paths.ouve import OUVE

    path, y = OUVE(), normal(1, DIM, seed=9).expand(8, DIM)
    shifted = [
        Mixture(path, m.means, torch.einsum("kde,ke,kfe->kdf", m.q, m.ev, m.q), m.weights, y) for m in worlds(path)
    ]
    times, x = torch.linspace(path.t_max, 0.1, 30, dtype=torch.float64), normal(8, DIM)
    b = path.schedule(times)[1]
    plain = superdiff(worlds(path), x, path, times, And(), seeded())
    moved = superdiff(shifted, x + b[0] * y, path, times, And(), seeded(), y=y)
    close(moved.x, plain.x + b[-1] * y, tol=1e-6)


def test_a_singular_start_is_refused():
    with pytest.raises(ValueError, match="no finite drift"):
        superdiff(worlds(RectifiedFlow()), normal(2, DIM), RectifiedFlow(), grid(5), And())
