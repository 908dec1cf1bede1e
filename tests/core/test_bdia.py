"""BDIA: order, the formula written out, and exact inversion."""

import itertools

import pytest
import torch
from test_multistep import EVERY_PATH, between, slope, unit
from worlds import correlated, name, normal

from fewstep.grids import Uniform
from fewstep.paths import DDPM, EDM, VP, Cosine, RectifiedFlow, ResidualShift, Trig
from fewstep.sampling import Callback, sample
from fewstep.solvers.bdia import BDIA, invert, resume
from fewstep.solvers.ddim import DDIM


class States(Callback):
    """Every state after the first."""

    def __init__(self):
        self.xs = []

    def on_step(self, x, done, total, row):
        self.xs.append(x)
        return False


def trajectory(world, x, path, solver, grid, y=None):
    states = States()
    sample(world, x, path, solver, grid, y, callbacks=[states])
    return [x, *states.xs]


def far(ours, exact):
    """Largest error relative to the largest value."""
    return ((ours - exact).abs().max() / exact.abs().max()).item()


# --- order and formula -----------------------------------------------------------------------------------------


@EVERY_PATH
@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0])
def test_a_leapfrog_is_of_second_order_and_a_damped_one_of_first(gamma, path, hi, lo):
    measured = slope(BDIA(gamma), path, hi, lo, [between(path, hi, lo, unit(n)) for n in (150, 300)])
    assert measured == pytest.approx(BDIA(gamma).order, abs=0.25)
    assert BDIA(gamma).order == (2 if gamma == 1 else 1)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_the_update_of_the_paper(gamma):
    """x_(i+1) = F(x_i; i -> i+1) + gamma (x_(i-1) - F(x_i; i -> i-1)) with the DDIM step F in eps."""
    path = DDPM(scaled=True)
    grid = torch.tensor([901.0, 801, 601, 301, 101, 1], dtype=torch.float64)
    world, xs = correlated(path), [normal(5, 3)]

    def ddim(x, t, s):
        (a, _, n), (a_s, _, n_s) = path.schedule(t), path.schedule(s)
        eps = world(x, t.item()).eps
        return a_s * (x - n * eps) / a + n_s * eps

    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        back = gamma * (xs[i - 1] - ddim(xs[i], t, grid[i - 1])) if i else 0.0
        xs.append(ddim(xs[i], t, s) + back)
    ours = torch.stack(trajectory(world, xs[0], path, BDIA(gamma), grid))
    torch.testing.assert_close(ours, torch.stack(xs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), ResidualShift()], ids=name)
def test_without_gamma_it_is_ddim(path):
    for ours, ddim in zip(BDIA(0.0).plan(path, Uniform()(path, 6)), DDIM().plan(path, Uniform()(path, 6)), strict=True):
        assert ours.x == pytest.approx(ddim.x, rel=1e-14)
        assert ours.e == pytest.approx(ddim.e, rel=1e-14)


@pytest.mark.parametrize("path", [VP(), EDM(), RectifiedFlow(), Trig(), Cosine(), DDPM(), ResidualShift()], ids=name)
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_one_to_four_steps_from_end_to_end_are_finite(gamma, path):
    y = normal(5, 3, seed=1) if path.anchored else None
    world, x = correlated(path, y), path.start(normal(5, 3), y)
    for n in (1, 2, 3, 4):
        assert sample(world, x, path, BDIA(gamma), Uniform()(path, n), y).isfinite().all()
        assert len(BDIA(gamma).plan(path, Uniform()(path, n))) == n


# --- inversion -------------------------------------------------------------------------------------------------

ROUND_TRIPS = [*((1.0, n) for n in (2, 3, 10, 50, 100, 200)), *((0.9, n) for n in (10, 50)), (0.5, 10)]


@pytest.mark.parametrize("path", [VP(), EDM(), RectifiedFlow(), Trig(), ResidualShift()], ids=name)
@pytest.mark.parametrize(("gamma", "n"), ROUND_TRIPS)
def test_a_sample_inverts_to_its_noise(path, gamma, n):
    """From the last two states, the last one clean, to the first two."""
    y = normal(5, 3, seed=1) if path.anchored else None
    world, x, grid = correlated(path, y), path.start(normal(5, 3), y), Uniform()(path, n)
    xs = trajectory(world, x, path, BDIA(gamma), grid, y)
    first, second = invert(world, xs[-1], path, BDIA(gamma), grid, y, before=xs[-2])
    assert far(first, xs[0]) < 1e-10
    assert far(second, xs[1]) < 1e-10


@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), ResidualShift()], ids=name)
@pytest.mark.parametrize(("gamma", "n"), [(1.0, 2), (1.0, 50), (1.0, 200), (0.9, 50)])
def test_a_real_sample_comes_back_from_its_pair_of_noises(path, gamma, n):
    y = normal(5, 3, seed=1) if path.anchored else None
    lo = path.t_min + 0.02 * (path.t_max - path.t_min)
    world, grid = correlated(path, y), torch.linspace(path.t_max, lo, n + 1, dtype=torch.float64)
    x = path.sample(normal(5, 3, seed=6), normal(5, 3), torch.full((5,), lo, dtype=torch.float64), y)
    pair = invert(world, x, path, BDIA(gamma), grid, y)
    assert far(resume(world, pair, path, BDIA(gamma), grid, y), x) < 1e-10


def test_ddim_inversion_is_not_exact():
    """What BDIA is for: the same round trip through DDIM is off by its discretisation error."""
    path = VP()
    world, grid, x = correlated(path), torch.linspace(1.0, 0.02, 51, dtype=torch.float64), normal(5, 3)
    back = sample(world, sample(world, x, path, DDIM(), grid), path, DDIM(), grid.flip(0))
    assert far(back, x) > 1e-3


def test_inversion_takes_one_evaluation_per_step():
    path, calls = VP(), []
    world, grid = correlated(path), torch.linspace(1.0, 0.02, 11, dtype=torch.float64)

    def counting(x, t):
        calls.append(t)
        return world(x, t)

    pair = invert(counting, normal(5, 3), path, BDIA(), grid)
    assert calls == grid[1:].flip(0).tolist()
    calls.clear()
    resume(counting, pair, path, BDIA(), grid)
    assert calls == grid[1:-1].tolist()


@pytest.mark.parametrize(
    ("solver", "n", "end", "words"),
    [
        (BDIA(0.5), 50, 0.02, "rounding errors"),
        (BDIA(0.9), 200, 0.02, "rounding errors"),
        (BDIA(0.0), 5, 0.02, "rounding errors"),
        (BDIA(1.0), 5, 0.0, "clean data"),
        (BDIA(1.0), 1, 0.02, "at least 2 steps"),
    ],
)
def test_inversions_that_cannot_work_are_refused_in_one_line(solver, n, end, words):
    path, grid = VP(), torch.linspace(1.0, end, n + 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=words) as refused:
        invert(correlated(path), normal(5, 3), path, solver, grid)
    assert "\n" not in str(refused.value)


def test_a_negative_gamma_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        BDIA(-0.5)
