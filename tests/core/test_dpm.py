"""The DPM-Solver family: exact weights, orders, identities, noise, singular ends, adaptive steps, thresholding, official numbers."""

import math
from decimal import Decimal, localcontext
from functools import cache

import numpy as np
import pytest
import torch
from golden_cases import Golden
from golden_families import dpm_solver, k_diffusion
from worlds import GOLDEN, correlated, golden_ids, normal, over, uniform

from fewstep.artifacts import build, describe
from fewstep.denoiser import Denoiser
from fewstep.estimate import Estimate
from fewstep.grids import LogSNR, Uniform
from fewstep.grids.fast import Fast
from fewstep.guidance.cfg import CFG, Guided
from fewstep.guidance.thresholding import DynamicThreshold, StaticThreshold, Thresholded, Thresholding, quantile
from fewstep.paths import EDM, VE, VP, RectifiedFlow, ResidualShift, Trig
from fewstep.prediction import Eps
from fewstep.sampling import Callback, sample
from fewstep.solvers import DDIM, Ancestral
from fewstep.solvers.ancestral import ExponentialAncestral, Renoised
from fewstep.solvers.deis import DEIS
from fewstep.solvers.dpm_adaptive import DPMAdaptive
from fewstep.solvers.dpm_fast import DPMFast
from fewstep.solvers.dpm_multistep import DPM3M, DPMMultistep, DPMpp3M
from fewstep.solvers.dpm_sde import DPMMultistepSDE, DPMpp2MSDE, DPMpp3MSDE
from fewstep.solvers.dpm_singlestep import DPM2S, DPM3S, DPMpp2S, DPMpp3S, DPMSinglestep
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.exponential import Step, phi
from fewstep.solvers.kdpm2 import KDPM2, KDPM2Ancestral
from fewstep.solvers.singlestep_sde import DPMpp2SAncestral, DPMppSDE
from fewstep.solvers.step_control import ErrorControl, PIDControl
from fewstep.toy import Mixture, gaussian

FORMS = ("x0", "eps")
RULES = ("midpoint", "taylor")
DETERMINISTIC = {
    **{f"{k}M-{u}": DPMMultistep(k, u) for k in (1, 2, 3) for u in FORMS},
    **{f"2M-{u}-taylor": DPMMultistep(2, u, "taylor") for u in FORMS},
    **{f"3M-{u}-exact": DPMMultistep(3, u, variant="exact") for u in FORMS},
    **{f"{k}S-{u}-{r}": DPMSinglestep(k, u, r) for k in (2, 3) for u in FORMS for r in RULES},
    "2S-nodes": DPMSinglestep(2, "x0", "midpoint", (0.3,)),
    "3S-nodes": DPMSinglestep(3, "x0", "taylor", (0.2, 2 / 3)),
    "3S-far": DPMSinglestep(3, "x0", "taylor", (0.2, 0.8)),
    "fast-2": DPMFast(2),
    "fast-3": DPMFast(3, "x0"),
}
STOCHASTIC = {
    "2M-sde": DPMpp2MSDE(),
    "2M-sde-taylor": DPMpp2MSDE(rule="taylor", eta=0.5),
    "3M-sde": DPMpp3MSDE(),
    "2M-sde-eps": DPMMultistepSDE(2, "eps"),
    "sde": DPMppSDE(),
    "sde-independent": DPMppSDE(eta=0.4, brownian=False),
    "2S-ancestral": DPMpp2SAncestral(),
    "2M-ancestral": Renoised(DPMpp2M()),
    "kdpm2-ancestral": KDPM2Ancestral(eta=0.7),
    "exponential": ExponentialAncestral(0.5),
    "fast-eta": DPMFast(3, eta=0.8),
}
EVERY = {**DETERMINISTIC, **STOCHASTIC}
SINGULAR = {"vp": VP(), "edm": EDM(), "rf": RectifiedFlow(), "trig": Trig()}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def even(path, hi, lo, n):
    """n steps evenly spaced in lambda."""
    lam = path.log_snr(times(hi, lo))
    return path.time_of_log_snr(torch.linspace(*lam.tolist(), n + 1, dtype=torch.float64))


def plans_equal(ours, theirs, tolerance=1e-13):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for v, w in ((a.x, b.x), (a.e, b.e), ((a.t, a.s, a.noise), (b.t, b.s, b.noise))):
            pad = max(len(v), len(w))
            assert [*v, *[0.0] * (pad - len(v))] == pytest.approx(
                [*w, *[0.0] * (pad - len(w))], rel=1e-11, abs=tolerance
            )


class Counting:
    def __init__(self, inner):
        self.inner, self.times = inner, []

    def __call__(self, x, t):
        self.times.append(t)
        return self.inner(x, t)


# --- exact weights ---------------------------------------------------------------------------------------------


def exact_phi(k, u):
    """By the recursion with 150 digits, which loses none that matter."""
    with localcontext() as context:
        context.prec = 150
        u = Decimal(u)
        v = u.exp()
        for j in range(k):
            v = (v - 1 / Decimal(math.factorial(j))) / u
        return float(v)


MAGNITUDES = [1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.999, 1.0, 1.001, 1.5, 3.0, 10.0, 50.0]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_keeps_its_digits(k):
    u = times(*MAGNITUDES, *(-v for v in MAGNITUDES))
    for ours, v in zip(phi(k, u).tolist(), u.tolist(), strict=True):
        assert ours == pytest.approx(exact_phi(k, v), rel=2e-14)


@pytest.mark.parametrize("uses", FORMS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_weights_are_exact_for_steps_of_any_length(k, uses):
    for h in MAGNITUDES:
        s = math.exp(-h)
        ours = Step(EDM(), times(1.0), times(s), uses).moment(k).item()
        exact = h * exact_phi(k, -h) if uses == "x0" else -s * h * exact_phi(k, h)
        assert ours == pytest.approx(exact, rel=1e-13 + 1e-15 / h)  # h itself is a difference of logarithms


@pytest.mark.parametrize("uses", FORMS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_weights_are_the_integrals_of_the_exponential_times_powers(k, uses):
    path, t, s = VP(), times(0.7), times(0.55)
    step = Step(path, t, s, uses)
    lam_t, lam_s = path.log_snr(t).item(), path.log_snr(s).item()
    nodes, weights = np.polynomial.legendre.leggauss(40)
    lam = lam_t + (lam_s - lam_t) * (nodes + 1) / 2
    power = (lam - lam_t) ** (k - 1) / math.factorial(k - 1)
    a, _, noise = (v.item() for v in path.schedule(s))
    f = noise * np.exp(lam) if uses == "x0" else -a * np.exp(-lam)
    integral = (weights * f * power).sum() * (lam_s - lam_t) / 2
    assert step.moment(k).item() * step.h.item() ** (k - 1) == pytest.approx(integral, rel=1e-12)


EXACT = {
    "2M": (DPMMultistep(2, rule="taylor"), 1),
    "2M midpoint": (DPMMultistep(2), 0),
    "3M official": (DPMMultistep(3), 1),
    "3M exact": (DPMMultistep(3, variant="exact"), 2),
    "3M exact eps": (DPMMultistep(3, "eps", variant="exact"), 2),
    "2S": (DPMSinglestep(2, "eps", "taylor"), 1),
    "2S midpoint": (DPMSinglestep(2), 0),
    "3S": (DPMSinglestep(3, "x0", "taylor"), 2),
    "3S eps": (DPMSinglestep(3, "eps", "taylor", (0.2, 0.7)), 2),
    "3S midpoint": (DPMSinglestep(3), 1),
}


@pytest.mark.parametrize(("solver", "degree"), [pytest.param(*v, id=k) for k, v in EXACT.items()])
def test_estimates_polynomial_in_lambda_are_integrated_exactly_up_to_the_degree(solver, degree):
    path, grid = VP(), times(0.9, 0.75, 0.66, 0.4)
    rows = solver.plan(path, grid)
    t, s = grid[-2], grid[-1]
    step, lam_t = Step(path, t, s, solver.uses), path.log_snr(t)
    at = [row.t for row in reversed(rows)]  # times of the estimates, newest first
    for j in range(4):
        quadrature = sum(w * (path.log_snr(times(v)) - lam_t).item() ** j for w, v in zip(rows[-1].e, at, strict=False))
        integral = (math.factorial(j) * step.moment(j + 1) * step.h**j).item()
        matches = abs(quadrature - integral) < 1e-11 * abs(integral)
        assert matches == (j <= degree), f"degree {j}: {quadrature} for {integral}"


# --- order -----------------------------------------------------------------------------------------------------

ENDS = {
    "vp": (VP(), 1.0, 0.01),
    "edm": (EDM(), 80.0, 0.05),
    "rf": (RectifiedFlow(), 0.99, 0.03),
    "trig": (Trig(), 1.55, 0.03),
}


class Bimodal:
    """Means +m and -m, variance v in each of them: x0 = k x + (1 - a k) m tanh(a m x/var), var = a^2 v + s^2, k = a v/var."""

    def __init__(self, path, m=1.0, v=0.15):
        self.path, self.m, self.v = path, m, v
        self.numbers = cache(lambda t: [w.item() for w in path.schedule(times(t))][::2])

    def __call__(self, x, t):
        a, s = self.numbers(t)
        var = a**2 * self.v + s**2
        k = a * self.v / var
        x0 = k * x + (1 - a * k) * self.m * torch.tanh(a * self.m / var * x)
        return Estimate(x0, lambda: (x - a * x0) / s)


class Single(Bimodal):
    """One Gaussian of mean m; its flow map is known."""

    def __call__(self, x, t):
        a, s = self.numbers(t)
        gain = a * self.v / (a**2 * self.v + s**2)
        return Estimate(lambda: self.m + gain * (x - a * self.m), lambda: s / (a**2 * self.v + s**2) * (x - a * self.m))

    def flow_map(self, x, t, s):
        return gaussian(self.path, self.m, math.sqrt(self.v), dim=1).flow_map(x, t, s)


def test_the_cheap_worlds_are_those_of_the_toy_module():
    x = 2 * normal(6, 1)
    for path in (VP(), EDM(), RectifiedFlow()):
        one = gaussian(path, 1.0, math.sqrt(0.15), dim=1)
        two = Mixture(path, times(1.0, -1.0)[:, None], torch.full((2, 1, 1), 0.15, dtype=torch.float64))
        for cheap, exact in ((Single(path)(x, 0.4), one(x, 0.4)), (Bimodal(path)(x, 0.4), two(x, 0.4))):
            torch.testing.assert_close(cheap.x0, exact.x0, rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(cheap.eps, exact.eps, rtol=1e-12, atol=1e-13)


def states(path, t):
    """States at time t of either world, (8, 1)."""
    x0 = normal(8, 1, seed=1).sign() + 0.4 * normal(8, 1, seed=3)
    return path.sample(x0, normal(8, 1, seed=2), torch.full((8,), t, dtype=torch.float64))


def slope(solver, world, x, path, hi, lo, exact, n):
    coarse, fine = ((sample(world, x, path, solver, even(path, hi, lo, m)) - exact).abs().max() for m in (n, 2 * n))
    assert fine > 1e-11  # far above rounding
    return math.log2(coarse / fine)


def check_order(solver, measured):
    assert measured > solver.order - 0.25
    if solver.order < 3 and not isinstance(
        solver, DPMFast
    ):  # those of third order start up with an error that falls faster
        assert measured < solver.order + 0.3


@pytest.mark.parametrize(("path", "hi", "lo"), [pytest.param(*v, id=k) for k, v in ENDS.items()])
@pytest.mark.parametrize("solver", over(DETERMINISTIC))
def test_order_on_a_gaussian_is_the_declared_one(solver, path, hi, lo):
    world, x = Single(path), states(path, hi)
    n = 99 if isinstance(solver, DPMFast) else 64  # 99 and 198 evaluations end with orders 2, 1
    check_order(solver, slope(solver, world, x, path, hi, lo, world.flow_map(x, hi, lo), n))


@cache
def fine_reference(name):
    path, hi, lo = ENDS[name]
    world, x = Bimodal(path), states(path, hi)
    return world, x, sample(world, x, path, DPMSinglestep(3, "x0", "taylor"), even(path, hi, lo, 800))


@pytest.mark.parametrize("name", ["vp", "rf"])
@pytest.mark.parametrize("solver", over({k: v for k, v in DETERMINISTIC.items() if not k.startswith("fast")}))
def test_order_on_a_mixture_is_the_declared_one(solver, name):
    world, x, exact = fine_reference(name)
    check_order(solver, slope(solver, world, x, *ENDS[name], exact, 80))


def test_the_exact_second_difference_is_what_makes_3m_third_order():
    """At equal cost, and with the same start-up, the error of the official weights is many times larger."""
    world, x, exact = fine_reference("vp")
    official, ours = (
        (sample(world, x, VP(), solver, even(VP(), 1.0, 0.01, 100)) - exact).abs().max()
        for solver in (DPMpp3M(), DPMpp3M(variant="exact"))
    )
    assert ours < official / 5


@pytest.mark.parametrize("solver", over({k: v for k, v in DETERMINISTIC.items() if "fast" not in k}))
def test_sampling_backwards_follows_the_same_flow(solver):
    path = VP()
    world, x = Single(path), states(path, 0.05)
    measured = slope(solver, world, x, path, 0.05, 0.95, world.flow_map(x, 0.05, 0.95), 48)
    # A first step of order 1 where estimates change fast leaves an error of second order.
    assert measured > (min(solver.order, 2) if isinstance(solver, DPMMultistep) else solver.order) - 0.3


# --- identities ------------------------------------------------------------------------------------------------

IRREGULAR = times(0.95, 0.8, 0.77, 0.5, 0.31, 0.1, 0.04)
EACH = pytest.mark.parametrize("path", over({k: SINGULAR[k] for k in ("vp", "rf", "trig")}))


@EACH
def test_order_one_is_ddim_in_every_form(path):
    world, x = correlated(path), normal(6, 3)
    ddim = sample(world, x, path, DDIM(), IRREGULAR)
    first = [DPMMultistep(1, u) for u in FORMS] + [DPMSinglestep(1, u) for u in FORMS] + [DPMFast(1, "x0")]
    for solver in [*first, ExponentialAncestral(0.0), DPMMultistepSDE(1, eta=0.0), Renoised(DDIM(), 0.0)]:
        torch.testing.assert_close(sample(world, x, path, solver, IRREGULAR), ddim, rtol=1e-12, atol=1e-12)


def test_2m_on_edm_is_the_formula_of_k_diffusion():
    """x <- (sigma'/sigma) x - expm1(-h) ((1 + 1/(2 r)) D - 1/(2 r) D_old), r = h_last/h."""
    path, grid = EDM(), times(20.0, 11.0, 7.0, 2.0, 0.5, 0.04)
    world, x = correlated(path), 20 * normal(6, 3)
    ours, old, last = sample(world, x, path, DPMpp2M(), grid), None, 0.0
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        h, d = math.log(t / s), world(x, t).x0
        r = last / h
        mixed = d if old is None else (1 + 1 / (2 * r)) * d - old / (2 * r)
        x, old, last = s / t * x - math.expm1(-h) * mixed, d, h
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


def test_dpm_solver_2_is_the_midpoint_rule_in_rho():
    path, grid = EDM(), times(20.0, 7.0, 2.0, 0.5)
    world, x = correlated(path), 20 * normal(6, 3)
    ours = sample(world, x, path, KDPM2(), grid)
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        mid = math.sqrt(t * s)
        x = x + (s - t) * world(x + (mid - t) * world(x, t).eps, mid).eps
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-11)


@EACH
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_exact_noise_form_is_deis_in_lambda(path, k):
    exact = DPMMultistep(k, "eps", "taylor", "exact")
    plans_equal(exact.plan(path, IRREGULAR), DEIS(k - 1, "lambda").plan(path, IRREGULAR))


@EACH
def test_without_noise_the_stochastic_solvers_are_the_deterministic_ones(path):
    pairs = [
        (DPMpp2MSDE(eta=0.0), DPMpp2M()),
        (DPMpp2MSDE(rule="taylor", eta=0.0), DPMMultistep(2, rule="taylor")),
        (DPMpp3MSDE(eta=0.0), DPMMultistep(3, rule="taylor")),
        (DPMMultistepSDE(3, "eps", eta=0.0), DPM3M()),
        (DPMppSDE(eta=0.0), DPMpp2S()),
        (DPMpp2SAncestral(eta=0.0), DPMpp2S()),
        (KDPM2Ancestral(eta=0.0), DPM2S()),
        (Renoised(DPMpp2M(), eta=0.0), DPMpp2M()),
    ]
    for stochastic, deterministic in pairs:
        plans_equal(stochastic.plan(path, IRREGULAR), deterministic.plan(path, IRREGULAR))


@EACH
def test_the_noise_rules_of_first_order_agree_where_they_should(path):
    plans_equal(Renoised(DDIM(), 0.6).plan(path, IRREGULAR), Ancestral(0.6).plan(path, IRREGULAR), 1e-11)
    plans_equal(ExponentialAncestral(1.0).plan(path, IRREGULAR), Ancestral(1.0).plan(path, IRREGULAR))
    plans_equal(DPMMultistepSDE(1, eta=0.3).plan(path, IRREGULAR), ExponentialAncestral(0.3).plan(path, IRREGULAR))
    half = [ExponentialAncestral(0.5).plan(path, IRREGULAR)[0].noise, Ancestral(0.5).plan(path, IRREGULAR)[0].noise]
    assert abs(half[0] - half[1]) > 1e-2  # not the same eta


def test_a_fast_grid_at_equal_fractions_is_the_singlestep_solver():
    path, outer = VP(), IRREGULAR
    lam = path.log_snr(outer)
    thirds = torch.cat(
        [
            lam[:-1, None] + (lam[1:] - lam[:-1])[:, None] * times(0, 1 / 3, 2 / 3),
        ],
        1,
    ).flatten()
    grid = torch.cat([path.time_of_log_snr(thirds), outer[-1:]])
    for uses in FORMS:
        plans_equal(DPMFast(3, uses, orders="fixed").plan(path, grid), DPMSinglestep(3, uses).plan(path, outer), 1e-11)


@pytest.mark.parametrize("solver", over({k: v for k, v in DETERMINISTIC.items() if "fast" not in k}))
def test_paths_with_the_same_log_snr_grid_have_the_same_data_trajectory(solver):
    lam, noise, seen = torch.linspace(-3, 3, 7, dtype=torch.float64), normal(6, 3), []
    for path in (VP(), EDM(), RectifiedFlow(), VE()):
        grid = path.time_of_log_snr(lam)
        a, _, s = path.schedule(grid)
        seen.append(sample(correlated(path), a[0] * 0.3 + s[0] * noise, path, solver, grid) / a[-1])
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", over(EVERY))
def test_shifting_the_anchor_shifts_the_end_by_its_weight(solver):
    path, grid = ResidualShift(), torch.linspace(14.0, 2.0, 7, dtype=torch.float64)
    x, y, c = normal(6, 3), normal(6, 3, seed=1), normal(6, 3, seed=2)
    b = path.schedule(grid)[1]
    still = sample(correlated(path, y), x, path, solver, grid, y, seeded())
    moved = sample(correlated(path, y + c), x + b[0] * c, path, solver, grid, y + c, seeded())
    torch.testing.assert_close(moved, still + b[-1] * c, rtol=1e-9, atol=1e-9)


# --- noise -----------------------------------------------------------------------------------------------------

MEAN, STD = 0.8, 0.6


def moments(path, rows):
    """Exact mean and variance at the end of a chain: estimates of a Gaussian are affine, so every state is a row of numbers
    over (1, the start, each draw of noise)."""
    draws = sum(row.noise != 0.0 for row in rows)
    first = path.schedule(times(rows[0].t))
    basis = np.zeros(draws + 2)
    basis[0] = first[0].item() * MEAN
    basis[1] = math.sqrt((first[0] ** 2 * STD**2 + first[2] ** 2).item())
    xs, es, drawn = [basis], [], 2
    for row in rows:
        a, _, s = (v.item() for v in path.schedule(times(row.t)))
        centred = xs[0].copy()
        centred[0] -= a * MEAN
        x0 = a * STD**2 / (a**2 * STD**2 + s**2) * centred
        x0[0] += MEAN
        es = [(x0, (xs[0] - a * x0) / s), *es]
        new = sum(w * x for w, x in zip(row.x, xs, strict=False))
        new = new + sum(w * e[row.uses == "eps"] for w, e in zip(row.e, es, strict=False))
        if row.noise:
            new[drawn] += row.noise
            drawn += 1
        xs = [new, *xs]
    return xs[0][0], (xs[0][1:] ** 2).sum()


# The order at which the variance of the marginal is approached; the mean is exact.
WEAK = {
    "exponential": (ExponentialAncestral(0.5), 1),
    "2M-sde": (DPMpp2MSDE(), 2),
    "2M-sde-half": (DPMpp2MSDE(eta=0.5), 2),
    "2M-sde-eps": (DPMMultistepSDE(2, "eps"), 2),
    "3M-sde": (DPMpp3MSDE(), 2),
    "3M-sde-exact": (DPMMultistepSDE(3, variant="exact"), 2),
    "sde": (DPMppSDE(), 2),
    "sde-half": (DPMppSDE(eta=0.5), 2),
    "sde-independent": (DPMppSDE(brownian=False), 1),
    "2S-ancestral": (DPMpp2SAncestral(), 2),
    "3S-ancestral": (Renoised(DPMpp3S()), 3),
    "kdpm2-ancestral": (KDPM2Ancestral(eta=0.7), 2),
    "2M-ancestral": (Renoised(DPMpp2M()), 1),
}


@pytest.mark.parametrize(("path", "hi", "lo"), [(VP(), 0.9, 0.05), (RectifiedFlow(), 0.95, 0.05)], ids=["vp", "rf"])
@pytest.mark.parametrize(("solver", "order"), [pytest.param(*v, id=k) for k, v in WEAK.items()])
def test_noisy_chains_keep_the_mean_and_approach_the_variance(solver, order, path, hi, lo):
    """A singlestep solver made ancestral keeps its order: the way down and the noise back up both lead to the marginal."""
    errors = []
    for n in (80, 160):
        grid = even(path, hi, lo, n)
        mean, var = moments(path, solver.plan(path, grid))
        a, _, s = (v.item() for v in path.schedule(grid[-1]))
        assert mean == pytest.approx(a * MEAN, abs=1e-12)
        errors.append(abs(var - a**2 * STD**2 - s**2))
    assert solver.order == order
    assert order - 0.25 < math.log2(errors[0] / errors[1]) < order + 0.35


def test_brownian_draws_of_a_step_have_the_variance_and_correlation_of_one_motion():
    """The draws that the two stages add up to, written over the two independent ones."""
    path, grid = EDM(), times(20.0, 8.0)
    brownian, independent = (DPMppSDE(brownian=v).plan(path, grid) for v in (True, False))
    first, second = brownian
    assert (first.x, first.e, first.noise) == (independent[0].x, independent[0].e, independent[0].noise)
    shared, total = second.x[0] * first.noise, independent[1].noise
    assert shared**2 + second.noise**2 == pytest.approx(total**2)
    inner = second.t
    assert shared / total == pytest.approx(math.sqrt((20.0 - inner) / (20.0 - 8.0)))
    # Without the noise both are the same step.
    assert second.x[1] + second.x[0] * first.x[0] == pytest.approx(independent[1].x[1])
    assert sum(second.e) + second.x[0] * first.e[0] == pytest.approx(sum(independent[1].e))


def test_scaled_noise_scales_the_noise_alone():
    for solver in (DPMpp2MSDE, DPMppSDE, DPMpp2SAncestral, KDPM2Ancestral, lambda **kw: DPMFast(eta=0.5, **kw)):
        plain, scaled = (solver(s_noise=v).plan(VP(), IRREGULAR) for v in (1.0, 1.1))
        for a, b in zip(plain, scaled, strict=True):
            assert (a.x, a.e) == (b.x, b.e)
            assert b.noise == pytest.approx(1.1 * a.noise)
        assert any(row.noise for row in plain)


def test_a_full_renewal_of_the_noise_is_a_first_order_step_that_keeps_it():
    """eta > 1 asks for more noise than there is at s: all of it becomes fresh."""
    rows = KDPM2Ancestral(eta=1.5).plan(EDM(), times(20.0, 5.0, 4.0))
    assert len(rows) == 3
    assert (rows[0].x, rows[0].e) == ((0.0,), (1.0,))
    assert rows[0].noise == pytest.approx(5.0)


def test_noise_backwards_is_refused():
    with pytest.raises(ValueError, match="KDPM2Ancestral"):
        KDPM2Ancestral().plan(VP(), times(0.1, 0.5, 0.9))


# --- few steps, singular ends, evaluations -----------------------------------------------------------------------


@pytest.mark.parametrize("path", over(SINGULAR))
@pytest.mark.parametrize("solver", over(EVERY))
def test_one_to_four_steps_from_end_to_end_are_finite(solver, path):
    for n in (1, 2, 3, 4):
        counting, grid = Counting(Bimodal(path)), Uniform()(path, n)
        out = sample(counting, path.start(normal(5, 3)), path, solver, grid, generator=seeded())
        assert out.isfinite().all()
        assert counting.times == [row.t for row in solver.plan(path, grid)]
        if isinstance(solver, DPMFast):
            assert len(counting.times) == n
            assert solver.eta or counting.times == grid[:-1].tolist()  # one evaluation per time, whatever is singular


@pytest.mark.parametrize("path", over(SINGULAR))
@pytest.mark.parametrize("solver", over(DETERMINISTIC))
def test_an_oracle_of_the_data_is_met_exactly(solver, path):
    """Constant estimates are integrated without error: x = a x0 + s eps all along, and the data itself at the clean end."""
    x0, noise = normal(5, 3, seed=3), normal(5, 3)

    def oracle(x, t):
        a, _, s = path.schedule(times(t))
        return Estimate(x0, (x - a * x0) / s)

    grid = path.t_max * torch.cat([torch.ones(1), uniform(6, seed=4).sort(descending=True).values, torch.zeros(1)])
    end = sample(oracle, path.sample(x0, noise, grid[:1].expand(5)), path, solver, grid)
    torch.testing.assert_close(end, x0, rtol=0, atol=0 if solver.uses == "x0" else 1e-11)
    inside = sample(oracle, path.sample(x0, noise, grid[1:2].expand(5)), path, solver, grid[1:-1])
    torch.testing.assert_close(inside, path.sample(x0, noise, grid[-2].expand(5)), rtol=1e-9, atol=1e-9)


NFE = {
    "2M": (DPMpp2M(), 1),
    "3M-sde": (DPMpp3MSDE(), 1),
    "2S": (DPM2S(), 2),
    "3S": (DPMpp3S(), 3),
    "2S-ancestral": (DPMpp2SAncestral(), 2),
    "sde": (DPMppSDE(), 2),
    "kdpm2-ancestral": (KDPM2Ancestral(), 2),
}


@pytest.mark.parametrize(("solver", "nfe"), [pytest.param(*v, id=k) for k, v in NFE.items()])
def test_evaluations_per_step(solver, nfe):
    regular = torch.linspace(0.9, 0.1, 6, dtype=torch.float64)
    assert len(solver.plan(RectifiedFlow(), regular)) == 5 * nfe
    singular = torch.linspace(1.0, 0.0, 6, dtype=torch.float64)
    assert len(solver.plan(RectifiedFlow(), singular)) == 3 * nfe + 2


# --- start-up, tails and mixed orders ------------------------------------------------------------------------------


def ks(solver, n):
    """How many estimates each step combines."""
    return [len(row.e) for row in solver.plan(VP(), torch.linspace(1.0, 0.01, n + 1, dtype=torch.float64))]


@pytest.mark.parametrize("cls", [DPMMultistep, DPMMultistepSDE])
def test_the_tail_lowers_the_last_steps_of_short_grids(cls):
    assert ks(cls(3), 6) == [1, 2, 3, 3, 3, 3]
    official = cls(3, tail=(2, 1), below=10)  # lower_order_final
    assert ks(official, 9) == [1, 2, 3, 3, 3, 3, 3, 2, 1]
    assert ks(official, 10) == [1, 2, *[3] * 8]
    assert ks(cls(3, tail=(1,)), 30)[-3:] == [3, 3, 1]  # euler_at_final
    assert ks(cls(2, tail=(2, 1)), 5) == [1, 2, 2, 2, 1]
    assert ks(official, 1) == [1]
    assert ks(official, 2) == [1, 1]


FAST = {
    (3, 9): [3, 3, 2, 1],
    (3, 10): [3, 3, 3, 1],
    (3, 11): [3, 3, 3, 2],
    (3, 3): [2, 1],
    (2, 6): [2, 2, 2],
    (2, 7): [2, 2, 2, 1],
    (1, 4): [1, 1, 1, 1],
}


@pytest.mark.parametrize(("k", "n"), list(FAST))
def test_fast_spends_the_budget_as_published(k, n):
    grid = torch.linspace(1.0, 0.01, n + 1, dtype=torch.float64)
    rows = DPMFast(k).plan(VP(), grid)
    assert [row.t for row in rows] == grid[:-1].tolist()
    ends = [grid.tolist().index(row.s) for row in rows if row.last]
    assert np.diff([0, *ends]).tolist() == FAST[k, n]


def test_fast_on_its_own_grid_is_the_singlestep_solver_with_the_nodes_of_the_paper():
    path = VP()
    grid = Fast(3, start=1.0, end=0.01)(path, 8)  # orders 3, 3, 1 and the first-order step into t = 0
    outer = grid[[0, 3, 6]]
    ours, paper = DPMFast().plan(path, grid), DPM3S().plan(path, outer)
    plans_equal(ours[:6], paper, 1e-10)
    assert [row.last for row in ours[6:]] == [True, True]


def test_fast_takes_given_orders_and_refuses_those_that_do_not_fit():
    grid = torch.linspace(1.0, 0.01, 7, dtype=torch.float64)
    assert [row.last for row in DPMFast(orders=(1, 2, 3)).plan(VP(), grid)] == [True, False, True, False, False, True]
    for orders in ("fixed", (3, 2), (4, 2)):
        with pytest.raises(ValueError, match="do not make up 6|do not make up 5"):
            DPMFast(orders=orders).plan(VP(), grid if orders != "fixed" else grid[:-1])


@pytest.mark.parametrize("solver", [DPMFast(3), DPMFast(2, "x0"), DPMpp2M(), DPMMultistep(3, "eps")], ids=str)
def test_a_clean_time_after_the_grid_is_one_further_evaluation_that_gives_x0(solver):
    """`denoise_to_zero`."""
    path = VP()
    world, x, grid = correlated(path), normal(5, 3), torch.linspace(1.0, 0.01, 8, dtype=torch.float64)
    last = sample(world, x, path, solver, grid)
    counting = Counting(world)
    clean = sample(counting, x, path, solver, torch.cat([grid, times(0.0)]))
    assert len(counting.times) == 8
    torch.testing.assert_close(clean, world(last, 0.01).x0, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "solver", [DPMpp2M(), DPMpp3M(), DPMMultistep(2, "eps"), DPMpp2MSDE(), DPMpp3MSDE(eta=0.5)], ids=str
)
def test_a_step_at_per_sample_times_is_the_first_row_of_each_sample(solver):
    path, t, s = VP(), times(1.0, 0.7, 0.5), times(0.6, 0.1, 0.0)
    z, seen = normal(3, 2), Estimate(normal(3, 2, seed=1), normal(3, 2, seed=2))
    stepped = solver.step(path, z, seen, t, s)
    for i in range(3 if solver.uses == "x0" else 2):
        (row,) = solver.plan(path, torch.stack([t[i], s[i]]))
        value = seen.x0 if row.uses == "x0" else seen.eps
        torch.testing.assert_close(stepped[i], row.x[0] * z[i] + row.e[0] * value[i], rtol=1e-12, atol=1e-12)


def test_settings_out_of_range_are_refused_in_one_line():
    for bad in (
        lambda: DPMMultistep(4),
        lambda: DPMMultistep(rule="heun"),
        lambda: DPMpp3M(variant="true"),
        lambda: DPMSinglestep(4),
        lambda: DPMSinglestep(3, nodes=(0.5,)),
        lambda: DPMAdaptive(k=1),
        lambda: Renoised(DPMpp2MSDE()).plan(VP(), IRREGULAR),
        lambda: DynamicThreshold(ratio=1.5),
    ):
        with pytest.raises(ValueError) as refused:
            bad()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("solver", over(EVERY))
def test_solvers_describe_themselves(solver):
    assert build(describe(solver)) == solver


# --- adaptive ------------------------------------------------------------------------------------------------------

ADAPTIVE = {
    f"{k}-{u}-{c.__name__}": DPMAdaptive(k, u, control=c())
    for k in (2, 3)
    for u in FORMS
    for c in (ErrorControl, PIDControl)
}


# The paper's control compares with the size of the state and lets the step grow at will: for paths of bounded size.
TOLERANT = [
    (k, n) for k, v in ADAPTIVE.items() for n in ("vp", "edm", "rf") if n != "edm" or isinstance(v.control, PIDControl)
]


@pytest.mark.parametrize(("solver", "name"), [pytest.param(ADAPTIVE[k], n, id=f"{k}-{n}") for k, n in TOLERANT])
def test_tolerances_buy_accuracy_with_evaluations(solver, name):
    path, hi, lo = ENDS[name]
    world, x = Single(path), states(path, hi)
    exact, seen = world.flow_map(x, hi, lo), []
    for tolerance in (1e-2, 1e-3):
        counting = Counting(world)
        tight = DPMAdaptive(solver.k, solver.uses, control=solver.control, atol=tolerance, rtol=tolerance)
        out = tight.sample(counting, x, path, hi, lo)
        assert out.nfe == len(counting.times) == solver.k * (len(out.times) + out.rejected)
        assert out.times[-1] == lo
        assert sorted(out.times, reverse=True) == out.times
        seen.append(((out.x - exact).abs().max(), out.nfe))
    (coarse, few), (fine, many) = seen
    assert fine < max(0.3 * coarse, 0.01)
    assert many > few


def test_an_accepted_step_is_that_of_the_table():
    """One long step with no tolerance to miss is DPM-Solver of the higher order, on an anchored path too."""
    for path, ends, y in ((VP(), (0.9, 0.5), None), (ResidualShift(), (12.0, 4.0), normal(4, 3, seed=5))):
        world, x = correlated(path, y), normal(4, 3)
        for k in (2, 3):
            solver = DPMAdaptive(k, atol=1e9, h_init=100.0)
            ours, table = solver.sample(world, x, path, *ends, y), DPMSinglestep(k, "eps")
            assert (ours.nfe, ours.rejected) == (k, 0)
            torch.testing.assert_close(ours.x, sample(world, x, path, table, times(*ends), y), rtol=1e-11, atol=1e-11)


def test_it_runs_backwards():
    path = VP()
    world, x = Single(path), states(path, 0.01)
    out = DPMAdaptive(3, atol=1e-4, rtol=1e-4).sample(world, x, path, 0.01, 1.0)
    torch.testing.assert_close(out.x, world.flow_map(x, 0.01, 1.0), rtol=0, atol=2e-3)
    assert sorted(out.times) == out.times


@pytest.mark.parametrize("name", SINGULAR)
def test_it_crosses_singular_ends_by_first_order_steps(name):
    path = SINGULAR[name]
    world, x = Single(path), path.start(normal(8, 1))
    out = DPMAdaptive(3, atol=1e-4, rtol=1e-4).sample(world, x, path, path.t_max, 0.0)
    assert out.times[-1] == 0.0
    assert (out.x - world.flow_map(x, path.t_max, 0.0)).abs().max() < 1e-2


def test_a_hopeless_first_step_is_rejected_and_repeated():
    world, x = Single(VP()), states(VP(), 1.0)
    for control in (ErrorControl(), PIDControl()):
        out = DPMAdaptive(2, control=control, atol=1e-4, rtol=1e-4, h_init=8.0).sample(world, x, VP(), 1.0, 0.01)
        assert out.rejected > 0
        assert (out.x - world.flow_map(x, 1.0, 0.01)).abs().max() < 2e-2


def test_adaptive_noise_keeps_the_marginal():
    path, n = VP(), 5_000
    world = Single(path, MEAN, STD**2)
    a, _, s = (v.item() for v in path.schedule(times(0.9)))
    x = a * MEAN + math.sqrt(a**2 * STD**2 + s**2) * normal(n, 1, seed=3)
    out = DPMAdaptive(3, atol=1e-2, rtol=1e-2, eta=1.0).sample(world, x, path, 0.9, 0.05, generator=seeded(4))
    a, _, s = (v.item() for v in path.schedule(times(0.05)))
    var = a**2 * STD**2 + s**2
    assert abs(out.x.mean() - a * MEAN) < 4 * math.sqrt(var / n)
    assert abs(out.x.var() - var) < 4 * var * math.sqrt(2 / n) + 2e-3
    assert (out.x - DPMAdaptive(3).sample(world, x, path, 0.9, 0.05).x).abs().mean() > 0.1  # not the ODE


def test_a_state_that_is_not_finite_is_reported_and_not_repeated_for_ever():
    broken = lambda x, t: Estimate(x * math.nan, x * math.nan)
    for control in (ErrorControl(), PIDControl()):
        with pytest.raises(ValueError, match="not finite"):
            DPMAdaptive(control=control).sample(broken, normal(2, 1), VP(), 1.0, 0.01)


def test_callbacks_see_accepted_steps_and_can_stop():
    class Stop(Callback):
        def __init__(self):
            self.estimates, self.steps = 0, []

        def on_estimate(self, x, estimate, row):
            self.estimates += 1
            return estimate

        def on_step(self, x, done, total, row):
            self.steps.append(row.s)
            return done == 3

    world, x = Single(VP()), states(VP(), 1.0)
    stop = Stop()
    out = DPMAdaptive(2).sample(world, x, VP(), 1.0, 0.01, callbacks=[stop])
    assert out.stopped
    assert (len(out.times), stop.steps, stop.estimates) == (3, out.times, out.nfe)


# --- thresholding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.995, 1.0])
def test_quantiles_are_those_of_torch(q):
    v = normal(5, 37)
    torch.testing.assert_close(quantile(v, q), torch.quantile(v, q, dim=1), rtol=1e-14, atol=0)
    assert quantile(v[:, :1], q).equal(v[:, 0])


CLIPS = {"static": StaticThreshold(0.7), "dynamic": DynamicThreshold(0.8)}


@pytest.mark.parametrize("path", over({k: SINGULAR[k] for k in ("vp", "edm", "rf")}))
@pytest.mark.parametrize("clip", over(CLIPS))
def test_a_clipped_estimate_still_makes_up_the_state(clip, path):
    world, x = correlated(path), 3 * normal(6, 3)
    for t in (0.3, torch.linspace(0.2, 0.8, 6, dtype=torch.float64)):
        plain, clipped = world(x, t), Thresholded(world, clip, path)(x, t)
        assert torch.equal(clipped.x0, clip(plain.x0))
        assert not torch.equal(clipped.x0, plain.x0)
        a, _, s = path.schedule(torch.as_tensor(t, dtype=torch.float64).expand(6)[:, None])
        torch.testing.assert_close(a * clipped.x0 + s * clipped.eps, x, rtol=1e-12, atol=1e-12)


def test_dynamic_thresholding_is_the_published_rule():
    x0 = 2 * normal(4, 2, 5)
    for each, ours in zip(x0, DynamicThreshold(0.9)(x0), strict=True):
        m = max(torch.quantile(each.abs(), 0.9).item(), 1.0)
        torch.testing.assert_close(ours, each.clamp(-m, m) / m, rtol=1e-14, atol=1e-14)
    inside = 0.3 * uniform(4, 10)
    assert torch.equal(DynamicThreshold()(inside), inside)
    assert torch.equal(StaticThreshold()(inside), inside)


def test_estimates_within_the_limits_are_left_alone_to_the_last_bit():
    world, x = correlated(VP()), normal(6, 3)
    for clip in (StaticThreshold(100.0), DynamicThreshold(1.0, 1.0)):
        small = lambda x, t: Estimate(0.01 * world(x, t).x0, world(x, t).eps)
        assert torch.equal(Thresholded(small, clip, VP())(x, 0.4).eps, world(x, 0.4).eps)


def test_thresholding_wraps_guidance():
    """Clipping does not commute with guidance: it belongs outside, and the solution stays in range."""

    class Net(torch.nn.Module):
        def forward(self, x, t, c):
            return torch.tanh(x * (1 + c)) - 0.5 * c

    path, x = VP(), normal(4, 3)
    denoiser = Denoiser(Net(), path, Eps())
    cond, uncond = {"c": torch.ones(4, 1, dtype=torch.float64)}, {"c": torch.zeros(1, 1, dtype=torch.float64)}
    model = Thresholding(CFG(denoiser, 8.0, uncond), StaticThreshold(1.0))
    assert model.path == path
    grid = LogSNR(end=1e-3)(path, 5)
    out = sample(model.bind(cond), x, path, DPMpp2M(), grid)
    assert out.abs().max() <= 1.0 < sample(model.denoiser.bind(cond), x, path, DPMpp2M(), grid).abs().max()
    by_hand = Thresholded(
        Guided(denoiser.bind(cond), denoiser.bind({"c": uncond["c"].expand(4, 1)}), 8.0), StaticThreshold(1.0), path
    )
    torch.testing.assert_close(sample(by_hand, x, path, DPMpp2M(), grid), out, rtol=1e-12, atol=1e-12)


# --- official numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["dpm_solver", "dpm_solver_cfg", "k_diffusion"])
def test_official_samplers_are_reproduced(family):
    if not golden_ids(family):
        pytest.skip(f"no golden vectors at {GOLDEN}")
    for case in Golden(GOLDEN / "solvers_dev.json").cases():
        if case["family"] == family:
            for what, ours, official in (dpm_solver.FAMILIES | k_diffusion.FAMILIES)[family](case):
                torch.testing.assert_close(
                    ours, official, rtol=case["rtol"], atol=case["atol"], msg=lambda m: f"{case['id']} {what}: {m}"
                )
