"""Explicit Runge-Kutta in rho and in t, and EDM's churn."""

import itertools
import math

import pytest
import torch
from test_multistep import EVERY_PATH, INTERVALS, Exact, between, slope, unit
from worlds import correlated, name, normal

from fewstep.denoiser import Denoiser
from fewstep.estimate import Estimate
from fewstep.grids import Karras, Uniform
from fewstep.paths import DDPM, EDM, VP, Cosine, RectifiedFlow, ResidualShift, Trig
from fewstep.prediction import U, V
from fewstep.sampling import Callback, sample
from fewstep.solvers import runge_kutta as rk
from fewstep.solvers.churn import Churn
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.heun import Heun
from fewstep.solvers.lms import LMS
from fewstep.solvers.runge_kutta import RungeKutta, Tableau, second_order

TABLEAUS = {k: v for k, v in vars(rk).items() if isinstance(v, Tableau)} | {"ALPHA.3": second_order(0.3)}
EVERY_TABLEAU = pytest.mark.parametrize("tableau", [pytest.param(v, id=k) for k, v in TABLEAUS.items()])
IN_RHO_OR_T = pytest.mark.parametrize("variable", ["rho", "t"])


# --- tableaus and order ----------------------------------------------------------------------------------------


def residuals(tableau):
    """By order, how far the tableau is from the order conditions."""
    n = len(tableau.b)
    a = torch.zeros(n, n, dtype=torch.float64)
    for i, row in enumerate(tableau.a, 1):
        a[i, :i] = torch.tensor(row, dtype=torch.float64)
    b, c = torch.tensor(tableau.b, dtype=torch.float64), a.sum(1)
    assert c.tolist() == pytest.approx(list(tableau.c), abs=1e-15)
    conditions = {
        1: [b.sum() - 1],
        2: [b @ c - 1 / 2],
        3: [b @ c**2 - 1 / 3, b @ a @ c - 1 / 6],
        4: [b @ c**3 - 1 / 4, (b * c) @ a @ c - 1 / 8, b @ a @ c**2 - 1 / 12, b @ a @ a @ c - 1 / 24],
    }
    return {order: max(abs(v.item()) for v in values) for order, values in conditions.items()}


@EVERY_TABLEAU
def test_a_tableau_meets_the_conditions_of_its_order_and_no_more(tableau):
    found = residuals(tableau)
    assert all(found[k] < 1e-14 for k in range(1, tableau.order + 1))
    assert all(found[k] > 1e-3 for k in range(tableau.order + 1, 5))


@EVERY_PATH
@IN_RHO_OR_T
@pytest.mark.parametrize(
    "tableau", [rk.EULER, rk.HEUN2, rk.RALSTON2, rk.KUTTA3, rk.SSP3, rk.RK4], ids=lambda v: str(v.b)
)
def test_halving_the_step_shows_the_order_of_the_tableau(tableau, variable, path, hi, lo):
    solver = RungeKutta(tableau, variable)
    measured = slope(solver, path, hi, lo, [between(path, hi, lo, unit(n)) for n in (40, 80)])
    assert solver.order == tableau.order
    assert solver.order - 0.25 < measured < solver.order + 0.5


@IN_RHO_OR_T
@pytest.mark.parametrize("tableau", [rk.MIDPOINT, rk.HEUN3, second_order(0.3)], ids=lambda v: str(v.b))
def test_order_on_a_mixture_by_the_differences_of_three_grids(tableau, variable):
    """On one Gaussian the midpoint rule in rho is of third order by chance."""
    path, hi, lo = INTERVALS["vp"]
    world, x = correlated(path), normal(4, 3)
    a, b, c = (
        sample(world, x, path, RungeKutta(tableau, variable), between(path, hi, lo, unit(n))) for n in (50, 100, 200)
    )
    measured = math.log2((a - b).abs().max().item() / (b - c).abs().max().item())
    assert measured == pytest.approx(tableau.order, abs=0.3)


# --- identities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VP(), EDM(), RectifiedFlow(), ResidualShift(), DDPM()], ids=name)
def test_euler_in_rho_is_ddim_and_heun_in_rho_is_heun(path):
    y = normal(5, 3, seed=1) if path.anchored else None
    world, x, grid = correlated(path, y), path.start(normal(5, 3), y), Uniform()(path, 6)
    for ours, known in ((RungeKutta(rk.EULER), DDIM()), (RungeKutta(rk.HEUN2), Heun())):
        got, expected = (sample(world, x, path, s, grid, y) for s in (ours, known))
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        assert len(ours.plan(path, grid)) == len(known.plan(path, grid))


def by_hand(tableau, f, x, times):
    """Textbook Runge-Kutta for dx/dv = f(x, v)."""
    for v, w in itertools.pairwise(times):
        k = []
        for row, c in zip([(), *tableau.a], tableau.c, strict=True):
            k.append(f(x + (w - v) * sum(a * s for a, s in zip(row, k, strict=True)), v + c * (w - v)))
        x = x + (w - v) * sum(b * s for b, s in zip(tableau.b, k, strict=True))
    return x


@EVERY_TABLEAU
def test_in_t_it_integrates_the_velocity_of_a_rectified_flow_from_pure_noise(tableau):
    path, grid = RectifiedFlow(), torch.tensor([1.0, 0.8, 0.55, 0.3, 0.1], dtype=torch.float64)
    world, x = correlated(path), normal(5, 3)

    def u(x, t):
        estimate = world(x, t)
        return estimate.eps - estimate.x0

    ours = sample(world, x, path, RungeKutta(tableau, "t"), grid)
    torch.testing.assert_close(ours, by_hand(tableau, u, x, grid.tolist()), rtol=1e-10, atol=1e-10)


@EVERY_TABLEAU
def test_in_rho_it_integrates_eps_in_z(tableau):
    path = VP()
    world, grid = correlated(path), torch.linspace(0.9, 0.05, 6, dtype=torch.float64)
    (a, _, s), x = path.schedule(grid), normal(5, 3)

    def eps(z, rho):
        t = path.time_of_log_snr(-torch.tensor(rho, dtype=torch.float64).log())
        return world(z * path.schedule(t)[0], t.item()).eps

    ours = sample(world, x, path, RungeKutta(tableau), grid)
    expected = a[-1] * by_hand(tableau, eps, x / a[0], (s / a).tolist())
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


# --- ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VP(), EDM(), RectifiedFlow(), Trig(), Cosine(), DDPM(), ResidualShift()], ids=name)
@IN_RHO_OR_T
@EVERY_TABLEAU
def test_one_to_four_steps_from_end_to_end_are_finite(tableau, variable, path):
    y = normal(5, 3, seed=1) if path.anchored else None
    world, x = correlated(path, y), path.start(normal(5, 3), y)
    for n in (1, 2, 3, 4):
        assert sample(world, x, path, RungeKutta(tableau, variable), Uniform()(path, n), y).isfinite().all()


@EVERY_TABLEAU
def test_evaluations(tableau):
    """As many as stages, but one into clean data; out of a = 0 one in rho and all in t."""
    stages = len(tableau.b)
    for path, variable, full in ((VP(), "rho", 5), (RectifiedFlow(), "rho", 4), (RectifiedFlow(), "t", 5)):
        rows = RungeKutta(tableau, variable).plan(path, Uniform()(path, 6))
        assert len(rows) == full * stages + 6 - full
        assert sum(r.last for r in rows) == 6


def test_the_last_step_in_t_is_eulers_in_t():
    path, x0, eps = VP(), normal(4, 3), normal(4, 3, seed=1)
    (row,) = RungeKutta(rk.RK4, "t").plan(path, torch.tensor([0.2, 0.0]))
    t = torch.full((4,), 0.2, dtype=torch.float64)
    x = path.sample(x0, eps, t)
    expected = x - 0.2 * path.velocity(x0, eps, t)
    torch.testing.assert_close(row.x[0] * x + row.e[0] * x0, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", [V(), U()], ids=name)
@IN_RHO_OR_T
def test_the_loop_over_raw_outputs_is_the_loop_over_estimates(variable, prediction):
    path = RectifiedFlow()
    denoiser = Denoiser(torch.nn.Module(), path, prediction)
    denoiser.net.forward = lambda x, t: torch.tanh(x) * t[:, None]
    x, grid, solver = normal(4, 3), Uniform()(path, 5), RungeKutta(rk.RK4, variable)
    folded, plain = (sample(denoiser.bind(), x, path, solver, grid, callbacks=c) for c in ([], [Callback()]))
    torch.testing.assert_close(folded, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tableau(((0.5,),), (1.0,), 1), "1 stages"),
        (lambda: second_order(0.0), "alpha"),
        (lambda: second_order(1.5), "alpha"),
        (lambda: RungeKutta(rk.RK4, "lambda"), "rho or t"),
        (lambda: Churn(LMS()), "looks back"),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(make, words):
    with pytest.raises(ValueError, match=words) as refused:
        make()
    assert "\n" not in str(refused.value)


# --- churn -----------------------------------------------------------------------------------------------------


class Moments:
    """States are coefficients (1, m) of independent normals; data is Gaussian, so the exact denoiser is affine."""

    mean, std = 0.8, 0.6

    def __init__(self, path):
        self.path = path

    def marginal(self, t):
        a, _, s = (v.item() for v in self.path.schedule(torch.tensor(t, dtype=torch.float64)))
        return a * self.mean, a**2 * self.std**2 + s**2

    def __call__(self, x, t):
        a, _, s = (v.item() for v in self.path.schedule(torch.tensor(t, dtype=torch.float64)))
        one = torch.eye(1, x.shape[1], dtype=torch.float64)
        centred = (x - a * self.mean * one) / (a**2 * self.std**2 + s**2)
        return Estimate(self.mean * one + a * self.std**2 * centred, s * centred)

    def run(self, solver, grid):
        """Exact mean and variance at grid[-1], from the exact marginal at grid[0]."""
        draws = [r for r in solver.plan(self.path, grid) if r.noise]
        mean, var = self.marginal(grid[0].item())
        x = torch.zeros(1, 2 + len(draws), dtype=torch.float64)
        x[0, 0], x[0, 1] = mean, math.sqrt(var)
        fresh = iter(torch.eye(2 + len(draws), dtype=torch.float64)[2:, None])
        end = sample(self, x, self.path, solver, grid, generator=lambda row: next(fresh))[0]
        return end[0].item(), end[1:].square().sum().item(), len(draws)


@EVERY_PATH
def test_churn_keeps_the_marginal_to_the_order_of_the_solver_inside(path, hi, lo):
    """The fresh noise itself is exact: what is left is the error of steps of h + log(1 + s_churn / n)."""
    world, exact = Moments(path), Moments(path).marginal(lo)
    for inner in (Heun(), RungeKutta(rk.KUTTA3)) if isinstance(path, VP) else (Heun(),):
        errors = []
        for n in (60, 120):
            mean, var, draws = world.run(Churn(inner, s_churn=8, s_noise=1.0), between(path, hi, lo, unit(n)))
            assert draws > n / 2
            assert mean == pytest.approx(exact[0], abs=1e-12)
            errors.append(abs(var - exact[1]))
        assert math.log2(errors[0] / errors[1]) == pytest.approx(inner.order, abs=0.35)


def test_too_much_noise_inflates_the_variance():
    path, hi, lo = INTERVALS["vp"]
    world, grid = Moments(path), between(path, hi, lo, unit(80))
    plain, inflated = (world.run(Churn(s_churn=16, s_noise=n), grid)[1] for n in (1.0, 1.05))
    assert inflated > 1.02 * plain


@pytest.mark.parametrize("inner", [Heun(), RungeKutta(rk.MIDPOINT, "t"), DDIM()], ids=name)
def test_no_churn_is_the_solver_inside(inner):
    path, grid = VP(), Uniform()(VP(), 5)
    assert Churn(inner, s_churn=0.0).plan(path, grid) == inner.plan(path, grid)
    assert Churn(inner).order == inner.order


def test_churn_raises_rho_by_gamma_between_s_min_and_s_max_and_costs_nothing():
    path, grid = VP(), Karras(sigma_min=0.01)(VP(), 10)
    rows = Churn(s_churn=3.0, s_min=0.1, s_max=20.0).plan(path, grid)
    assert sum(bool(r.e) for r in rows) == 19
    rho = (-path.log_snr(grid)).exp()
    noisy = [(i, r) for i, r in enumerate(rows) if r.noise]
    assert [r.t for _, r in noisy] == grid[(rho >= 0.1) & (rho <= 20.0)].tolist()
    for i, row in noisy:
        level = lambda t: (-path.log_snr(torch.tensor(t, dtype=torch.float64))).exp().item()
        assert row.e == () and not row.last
        assert level(rows[i + 1].t) == pytest.approx(1.3 * level(row.t), rel=1e-10)
        a = path.schedule(torch.tensor(rows[i + 1].t, dtype=torch.float64))[0].item()
        assert row.noise == pytest.approx(1.003 * a * math.sqrt(1.3**2 - 1) * level(row.t), rel=1e-9)


@pytest.mark.parametrize("path", [VP(), EDM(), RectifiedFlow(), Trig(), DDPM(), ResidualShift()], ids=name)
def test_churn_stays_on_the_path_and_finite(path):
    y = normal(5, 3, seed=1) if path.anchored else None
    world, x = correlated(path, y), path.start(normal(5, 3), y)
    solver, generator = Churn(s_min=0.0, s_max=math.inf), torch.Generator().manual_seed(0)
    for n in (1, 2, 3, 4, 10):
        grid = Uniform()(path, n)
        assert max(r.t for r in solver.plan(path, grid)) <= path.t_max
        assert sample(world, x, path, solver, grid, y, generator).isfinite().all()


def test_exact_is_the_denoiser_of_the_toy_world():
    """The quick world of the order tests against fewstep.toy."""
    from fewstep.toy import gaussian

    path, y, x = ResidualShift(), normal(5, 2, seed=1), normal(5, 2)
    quick, toy = Exact(path, y), gaussian(path, Exact.mean, Exact.std, dim=2, y=y)
    quick.prepare((6.5,), x)
    torch.testing.assert_close(quick(x, 6.5).x0, toy(x, 6.5).x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(quick(x, 6.5).eps, toy(x, 6.5).eps, rtol=1e-12, atol=1e-12)
