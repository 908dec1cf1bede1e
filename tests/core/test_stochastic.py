"""Stochastic solvers on worlds where the chain is Gaussian: exact moments, weak order, samples."""

import json
import math

import pytest
import torch
from worlds import PATHS, correlated, name, normal, over, uniform

from fewstep.artifacts import build, describe
from fewstep.estimate import Estimate
from fewstep.flow_map import sample_jumps
from fewstep.grids import LogSNR, Uniform
from fewstep.paths import EDM, VP, RectifiedFlow, ResidualShift
from fewstep.paths.interpolant import Interpolant, Parabola
from fewstep.paths.ouve import OUVE
from fewstep.paths.residual_denoising import ResidualDenoising
from fewstep.paths.sbve import SBVE
from fewstep.sampling import sample
from fewstep.solvers.ancestral import Ancestral, UnitGainAncestral
from fewstep.solvers.bridge import BridgeStart
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.diffusion import ConstantDiffusion, NoiseDiffusion, OwnDiffusion
from fewstep.solvers.double_step import DoubleStep
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.euler_maruyama import EulerMaruyama
from fewstep.solvers.gamma import GammaSampling
from fewstep.solvers.heun import Heun
from fewstep.solvers.mean_at_end import MeanAtEnd
from fewstep.solvers.mean_reverting import MeanRevertingEuler
from fewstep.solvers.predictor_corrector import PredictorCorrector
from fewstep.solvers.residual_ancestral import ResidualAncestral
from fewstep.solvers.stochastic_heun import InterpolantHeun, StochasticHeun
from fewstep.solvers.strategic import StrategicSampling
from fewstep.toy import gaussian

MEAN, STD, ANCHOR = 0.8, 0.6, -1.5

# Paths, and a noisy and a clean time inside them.
RANGES = {
    "vp": (VP(), 1.0, 0.05),
    "rf": (RectifiedFlow(), 0.9, 0.1),
    "edm": (EDM(), 5.0, 0.1),
    "ouve": (OUVE(), 1.0, 0.03),
    "sbve": (SBVE(), 0.95, 0.05),
    "interpolant": (Interpolant(gamma=Parabola(1.5)), 0.95, 0.05),
    "rddm": (ResidualDenoising(sum_scale=1.0), 999.0, 50.0),
}
EVERY_RANGE = pytest.mark.parametrize(("path", "hi", "lo"), [pytest.param(*v, id=k) for k, v in RANGES.items()])
# Solvers whose chain has the marginals of the path in the limit of small steps.
CONVERGENT = {
    "reverse SDE": EulerMaruyama(),
    "half the noise": EulerMaruyama(OwnDiffusion(0.5)),
    "Euler ODE": EulerMaruyama(OwnDiffusion(0.0)),
    "Heun SDE": StochasticHeun(),
    "Heun ODE": StochasticHeun(OwnDiffusion(0.0)),
    "published Heun": InterpolantHeun(),
    "ancestral": Ancestral(),
    "half ancestral": Ancestral(0.5),
    "residual": ResidualAncestral(0.7),
    "double step": DoubleStep(),
}
# s must fall with t for unit-gain chains.
FALLING = ("vp", "rf", "edm", "ouve", "rddm")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(hi, lo, n):
    return torch.linspace(hi, lo, n + 1, dtype=torch.float64)


def level(path, t):
    return [v.item() for v in path.schedule(torch.tensor(t, dtype=torch.float64))]


def marginal(path, t):
    """Mean and variance of x_t in the Gaussian world."""
    a, b, s = level(path, t)
    return a * MEAN + b * ANCHOR, a**2 * STD**2 + s**2


class Algebra:
    """The Gaussian world for random variables c_0 + c_1 X + c_2 xi_1 + c_3 xi_2 + ..., as coefficients (1, K).

    The posterior mean is affine, so `sample` propagates the coefficients and with them the exact mean and variance.
    """

    def __init__(self, path, size):
        self.path, self.one, self.drawn = path, torch.eye(1, size, dtype=torch.float64), 1
        self.y = ANCHOR * self.one

    def start(self, mean, var):
        x = mean * self.one
        x[0, 1] = math.sqrt(var)
        return x

    def noise(self, row):
        self.drawn += 1
        return torch.zeros_like(self.one).index_fill_(1, torch.tensor([self.drawn]), 1.0)

    def __call__(self, x, t):
        a, b, s = level(self.path, t)
        off = x - b * self.y - a * MEAN * self.one
        v = a**2 * STD**2 + s**2
        return Estimate(MEAN * self.one + a * STD**2 / v * off, s / v * off)


def moments(path, solver, grid):
    """Exact mean and variance at the end of the chain that starts in the marginal of grid[0]."""
    world = Algebra(path, 2 + sum(r.noise != 0 for r in solver.plan(path, grid)))
    out = sample(world, world.start(*marginal(path, grid[0].item())), path, solver, grid, world.y, world.noise)[0]
    return out[0].item(), out[1:].square().sum().item()


def errors(path, solver, grid):
    (mean, var), (exact_mean, exact_var) = moments(path, solver, grid), marginal(path, grid[-1].item())
    return abs(mean - exact_mean), abs(var - exact_var)


# --- weak order ------------------------------------------------------------------------------------------------


@EVERY_RANGE
@pytest.mark.parametrize("solver", over(CONVERGENT))
def test_mean_and_variance_converge_with_the_declared_order(solver, path, hi, lo, request):
    if isinstance(solver, UnitGainAncestral) and request.node.callspec.id.split("-")[-1] not in FALLING:
        pytest.skip("s rises towards the clean end")
    order = 1 if isinstance(solver, Ancestral | UnitGainAncestral) else solver.order
    coarse, fine = (errors(path, solver, linear(hi, lo, n)) for n in (80, 160))
    assert max(fine) > 1e-9  # far above rounding
    for c, f in zip(coarse, fine, strict=True):
        # A moment may be exact, or, where two contributions cancel at this n, better than the order says.
        assert f < 1e-12 or math.log2(c / f) > order - 0.25
    assert math.log2(max(coarse) / max(fine)) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(
    "diffusion", [ConstantDiffusion(0.3), ConstantDiffusion(1.0), NoiseDiffusion(1.0), NoiseDiffusion(1.5)], ids=str
)
@pytest.mark.parametrize(("path", "hi", "lo"), [pytest.param(*RANGES[k], id=k) for k in ("rf", "sbve", "interpolant")])
def test_any_diffusion_leaves_the_marginals_unchanged(path, hi, lo, diffusion):
    """Stochastic interpolants (arXiv:2303.08797): e changes the paths, not their distribution at any time."""
    first, second = EulerMaruyama(diffusion), StochasticHeun(diffusion)
    for solver in (first, second):
        coarse, fine = (errors(path, solver, linear(hi, lo, n)) for n in (100, 200))
        assert math.log2(max(coarse) / max(fine)) > solver.order - 0.25
    assert max(fine) < 3e-4


@pytest.mark.parametrize("diffusion", [OwnDiffusion(), OwnDiffusion(0.0), NoiseDiffusion(0.5)], ids=str)
@pytest.mark.parametrize(("path", "hi", "lo"), [pytest.param(*RANGES[k], id=k) for k in ("vp", "ouve", "sbve")])
def test_increasing_grids_run_the_forward_sde(path, hi, lo, diffusion):
    for solver in (EulerMaruyama(diffusion), StochasticHeun(diffusion)):
        coarse, fine = (errors(path, solver, linear(lo, hi, n)) for n in (100, 200))
        assert math.log2(max(coarse) / max(fine)) == pytest.approx(solver.order, abs=0.3)


def test_own_diffusion_is_that_of_the_published_sdes():
    t = uniform(20, low=0.05, high=0.95)
    vp = VP()
    beta = vp.beta_min + t * (vp.beta_max - vp.beta_min)
    torch.testing.assert_close(2 * OwnDiffusion().strength(vp, t, vp.rates(t)), beta, rtol=1e-12, atol=0)
    ouve = OUVE()
    g = (
        ouve.sigma_min
        * (ouve.sigma_max / ouve.sigma_min) ** t
        * math.sqrt(2 * math.log(ouve.sigma_max / ouve.sigma_min))
    )
    torch.testing.assert_close(2 * OwnDiffusion().strength(ouve, t, ouve.rates(t)), g**2, rtol=1e-12, atol=0)
    edm = EDM()
    torch.testing.assert_close(2 * OwnDiffusion().strength(edm, t, edm.rates(t)), 2 * t, rtol=1e-12, atol=0)


def test_euler_maruyama_is_the_step_of_the_reverse_sde():
    """dx = (f x + (b' - f b) y - g^2 score) dt + g dW, with theta and g of OUVE written out."""
    path, t, s = OUVE(), 0.7, 0.6
    x, y, world = normal(5, 3), normal(5, 3, seed=1), correlated(OUVE(), normal(5, 3, seed=1))
    xi = normal(5, 3, seed=2)
    g = 0.05 * 10**t * math.sqrt(2 * math.log(10))
    expected = x - (t - s) * (1.5 * (y - x) - g**2 * world.score(x, t)) + g * math.sqrt(t - s) * xi
    grid = torch.tensor([t, s], dtype=torch.float64)
    ours = sample(world, x, path, EulerMaruyama(), grid, y, lambda row: xi)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_euler_without_noise_on_a_rectified_flow_is_ddim():
    path, grid = RectifiedFlow(), linear(1.0, 0.0, 5)
    for ours, ddim in zip(EulerMaruyama(OwnDiffusion(0.0)).plan(path, grid), DDIM().plan(path, grid), strict=True):
        assert ours.noise == 0
        assert (ours.x[0], ours.e[0]) == pytest.approx((ddim.x[0], ddim.e[0]), abs=1e-13)


def test_published_heun_is_both_slopes_at_the_end_of_the_step():
    path, t, s = Interpolant(gamma=Parabola(1.5)), 0.7, 0.6
    x, y, xi = normal(5, 3), normal(5, 3, seed=1), normal(5, 3, seed=2)
    world, e = correlated(path, y), 0.4

    def slope(x):
        estimate = world(x, s)
        da, db, ds = (v.item() for v in path.rates(torch.tensor(s, dtype=torch.float64)))
        return da * estimate.x0 + db * y + ds * estimate.eps - e * world.score(x, s)

    noisy = x + math.sqrt(2 * e * (t - s)) * xi
    first = slope(noisy)
    expected = noisy + (s - t) / 2 * (first + slope(noisy + (s - t) * first))
    solver, grid = InterpolantHeun(ConstantDiffusion(e)), torch.tensor([t, s], dtype=torch.float64)
    ours = sample(world, x, path, solver, grid, y, lambda row: xi)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_stochastic_heun_is_the_trapezoidal_rule():
    path, t, s = OUVE(), 0.7, 0.6
    x, y, xi = normal(5, 3), normal(5, 3, seed=1), normal(5, 3, seed=2)
    world = correlated(path, y)

    def slope(x, t):
        g = 0.05 * 10**t * math.sqrt(2 * math.log(10))
        return 1.5 * (y - x) - g**2 * world.score(x, t)

    shake = math.sqrt((t - s) * (0.05**2 * 2 * math.log(10)) * (100**t + 100**s) / 2) * xi
    first = slope(x, t)
    expected = x + (s - t) / 2 * (first + slope(x + (s - t) * first + shake, s)) + shake
    grid = torch.tensor([t, s], dtype=torch.float64)
    ours = sample(world, x, path, StochasticHeun(), grid, y, lambda row: xi)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


# --- samples ---------------------------------------------------------------------------------------------------

SAMPLED = {
    "reverse SDE": (EulerMaruyama(), VP(), 1.0, 0.05),
    "interpolant SDE": (EulerMaruyama(NoiseDiffusion(0.5)), Interpolant(gamma=Parabola(1.5)), 0.95, 0.05),
    "Heun SDE": (StochasticHeun(), RectifiedFlow(), 0.9, 0.1),
    "posterior": (Ancestral(), OUVE(), 1.0, 0.03),
    "corrected": (PredictorCorrector(snr=0.1), OUVE(), 1.0, 0.03),
}


@pytest.mark.parametrize(("solver", "path", "hi", "lo"), [pytest.param(*v, id=k) for k, v in SAMPLED.items()])
def test_samples_have_the_marginal(solver, path, hi, lo):
    n, grid = 20_000, linear(hi, lo, 200)
    y = torch.full((n, 1), ANCHOR, dtype=torch.float64)
    (start, start_var), (mean, var) = marginal(path, hi), marginal(path, lo)
    x = start + math.sqrt(start_var) * normal(n, 1, seed=21)
    out = sample(gaussian(path, MEAN, STD, y=y), x, path, solver, grid, y, seeded(22))
    assert abs(out.mean() - mean) < 4 * math.sqrt(var / n)
    assert abs(out.var() - var) < 4 * var * math.sqrt(2 / n)


EVERY_CHAIN = {
    **CONVERGENT,
    "gamma": GammaSampling(0.5),
    "strategic": StrategicSampling(0.3),
    "pc": PredictorCorrector(),
}


@pytest.mark.parametrize("solver", over({k: v for k, v in EVERY_CHAIN.items() if "ODE" not in k}))
def test_noise_comes_from_the_given_generator_alone(solver):
    path = VP()
    world, x, grid = correlated(path), normal(4, 3), Uniform(end=0.01)(path, 5)

    def run(seed, disturb):
        torch.manual_seed(disturb)
        return sample(world, x, path, solver, grid, generator=seeded(seed))

    assert torch.equal(run(1, 0), run(1, 99))
    assert not torch.equal(run(1, 0), run(2, 0))
    before = torch.random.get_rng_state()
    sample(world, x, path, solver, grid, generator=seeded(1))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("path", over({k: PATHS[k] for k in ("ddpm", "edm", "rf", "resshift15")}))
@pytest.mark.parametrize("solver", over(EVERY_CHAIN))
def test_few_steps_from_end_to_end_are_finite(solver, path, n):
    y = normal(5, 3, seed=1)
    world, x = correlated(path, y), path.start(normal(5, 3), y)
    assert sample(world, x, path, solver, Uniform()(path, n), y, seeded()).isfinite().all()


@pytest.mark.parametrize("solver", [EulerMaruyama(), PredictorCorrector(corrections=2), StochasticHeun()], ids=name)
def test_evaluations_are_those_declared(solver):
    rows = solver.plan(VP(), linear(1.0, 0.1, 6))
    per_step = {"EulerMaruyama": 1, "PredictorCorrector": 3, "StochasticHeun": 2}[name(solver)]
    assert sum(bool(r.e) for r in rows) == 6 * per_step
    assert sum(r.last for r in rows) == 6


# --- gamma sampling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [GammaSampling(0.0), StrategicSampling(0.0), ResidualAncestral(0.0)], ids=name)
@pytest.mark.parametrize("path", over({k: PATHS[k] for k in ("vp", "edm", "rf", "resshift15")}))
def test_without_noise_they_are_ddim(solver, path):
    grid = Uniform()(path, 6)
    for ours, ddim in zip(solver.plan(path, grid), DDIM().plan(path, grid), strict=True):
        assert (ours.x[0], ours.e[0], ours.noise) == pytest.approx((ddim.x[0], ddim.e[0], 0.0), abs=1e-14)


@pytest.mark.parametrize("solver", [GammaSampling(1.0), StrategicSampling(1.0)], ids=name)
@pytest.mark.parametrize("path", over({k: PATHS[k] for k in ("vp", "edm", "rf", "resshift15")}))
def test_all_fresh_noise_is_multistep_consistency_sampling(solver, path):
    """x_s = a_s x0 + s_s xi, whatever the state was."""
    grid = Uniform()(path, 4)
    a, _, s = path.schedule(grid[1:])
    for row, a_s, s_s in zip(solver.plan(path, grid), a.tolist(), s.tolist(), strict=True):
        # sqrt of the rounding of s^2 - (a s_u/a_u)^2 where s_u is tiny but not 0
        assert (row.x[0], row.e[0], row.noise) == pytest.approx((0.0, a_s, s_s), abs=1e-12)


@pytest.mark.parametrize("gamma", [0.2, 0.7])
def test_gamma_sampling_goes_through_the_level_below(gamma):
    """DDIM to rho_u = sqrt(1 - gamma^2) rho_s, then the path's own kernel u -> s."""
    path, t, s = VP(), 0.8, 0.5
    rho_s = math.exp(-path.log_snr(torch.tensor(s, dtype=torch.float64)).item())
    u = path.time_of_log_snr(torch.tensor(-math.log(math.sqrt(1 - gamma**2) * rho_s), dtype=torch.float64)).item()
    (down,) = DDIM().plan(path, torch.tensor([t, u], dtype=torch.float64))
    (a_u, _, s_u), (a_s, _, s_s) = level(path, u), level(path, s)
    (row,) = GammaSampling(gamma).plan(path, torch.tensor([t, s], dtype=torch.float64))
    assert row.x[0] == pytest.approx(a_s / a_u * down.x[0], rel=1e-9)
    assert row.e[0] == pytest.approx(a_s / a_u * down.e[0], rel=1e-9)
    assert row.noise == pytest.approx(math.sqrt(s_s**2 - (a_s * s_u / a_u) ** 2), rel=1e-9)


def test_a_double_step_is_two_steps_of_ddim_and_noise_for_one():
    path, grid = VP(), linear(0.9, 0.3, 3)
    t, s, u = grid[:3].tolist()
    (down,) = DDIM().plan(path, torch.tensor([t, u], dtype=torch.float64))
    (a_u, _, s_u), (a_s, _, s_s) = level(path, u), level(path, s)
    row = DoubleStep().plan(path, grid)[0]
    assert (row.x[0], row.e[0]) == pytest.approx((a_s / a_u * down.x[0], a_s / a_u * down.e[0]), rel=1e-12)
    assert row.noise == pytest.approx(math.sqrt(s_s**2 - (a_s * s_u / a_u) ** 2), rel=1e-12)


@pytest.mark.parametrize("path", over({k: PATHS[k] for k in ("vp", "edm", "rf", "resshift15")}))
def test_the_last_double_step_ends_clean(path):
    (first, last), (ddim,) = (
        s.plan(path, g)
        for s, g in zip((DoubleStep(), DDIM()), (Uniform()(path, 2), Uniform()(path, 2)[1:]), strict=True)
    )
    assert first.noise > 0
    assert (last.x[0], last.e[0], last.noise) == pytest.approx((ddim.x[0], ddim.e[0], 0.0), abs=1e-14)


def test_strategic_sampling_goes_through_an_earlier_time():
    path, t, s, u = VP(), 0.8, 0.5, 0.35
    (down,) = DDIM().plan(path, torch.tensor([t, u], dtype=torch.float64))
    (a_u, _, s_u), (a_s, _, s_s) = level(path, u), level(path, s)
    (row,) = StrategicSampling(0.3).plan(path, torch.tensor([t, s], dtype=torch.float64))
    assert (row.x[0], row.e[0]) == pytest.approx((a_s / a_u * down.x[0], a_s / a_u * down.e[0]), rel=1e-12)
    assert row.noise == pytest.approx(math.sqrt(s_s**2 - (a_s * s_u / a_u) ** 2), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize(
    "path", over({"edm": EDM(), "vp": VP(), "rf": RectifiedFlow(), "resshift": ResidualShift(), "ouve": OUVE()})
)
def test_jumps_of_the_exact_flow_map_keep_every_marginal(path, n, gamma):
    """Unlike the step of a denoiser: mean and variance of the chain are exact for every gamma and number of steps."""
    hi = {"EDM": 5.0, "RectifiedFlow": 0.9}.get(name(path), path.t_max)
    lo = path.t_min + 0.05 * (hi - path.t_min)
    world = Algebra(path, n + 2)

    def jump(x, t, u):
        (mean_t, var_t), (mean_u, var_u) = marginal(path, t), marginal(path, u)
        return mean_u * world.one + math.sqrt(var_u / var_t) * (x - mean_t * world.one)

    x = world.start(*marginal(path, hi))
    out = sample_jumps(jump, x, path, linear(hi, lo, n), gamma, world.y, world.noise)[0]
    assert (out[0].item(), out[1:].square().sum().item()) == pytest.approx(marginal(path, lo), rel=1e-10)
    assert (world.drawn > 1) == (gamma > 0 and n > 1)


def test_jumps_land_where_the_paper_says():
    landed = []

    def jump(x, t, u):
        landed.append((t, u))
        return x

    grid = torch.tensor([80.0, 10.0, 2.0, 0.0], dtype=torch.float64)
    sample_jumps(jump, normal(2, 3), EDM(), grid, 0.6, generator=seeded())
    assert [t for t, _ in landed] == [80.0, 10.0, 2.0]
    assert [u for _, u in landed] == pytest.approx([8.0, 1.6, 0.0])
    landed.clear()
    sample_jumps(jump, normal(2, 3), EDM(), grid, 1.0, generator=seeded(), rho_min=0.002)
    assert [u for _, u in landed] == pytest.approx([0.002, 0.002, 0.0])


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan])
def test_gamma_outside_its_range_is_refused(gamma):
    for refused in (lambda: GammaSampling(gamma), lambda: StrategicSampling(gamma)):
        with pytest.raises(ValueError, match="gamma is"):
            refused()
    with pytest.raises(ValueError, match="gamma is"):
        sample_jumps(lambda x, t, u: x, normal(2, 3), EDM(), linear(1, 0, 2), gamma)


# --- predictor and corrector -----------------------------------------------------------------------------------


@pytest.mark.parametrize("snr", [0.1, 0.3, 0.5])
def test_langevin_corrections_have_their_own_stationary_variance(snr):
    """x' = x - step (x - m)/v + sqrt(2 step) xi settles at v/(1 - step/(2 v)), step = 2 (snr s)^2."""
    path, t = VP(), 0.4
    mean, v = marginal(path, t)
    step = 2 * (snr * level(path, t)[2]) ** 2
    n = 1200
    solver, grid = PredictorCorrector(DDIM(), snr, n), torch.tensor([t, t * (1 - 1e-12)], dtype=torch.float64)
    world = Algebra(path, n + 2)
    out = sample(world, world.start(0.0, 9.0), path, solver, grid, world.y, world.noise)[0]
    assert out[0].item() == pytest.approx(mean, abs=1e-7)
    assert out[1:].square().sum().item() == pytest.approx(v / (1 - step / (2 * v)), rel=1e-7)


def test_a_corrector_repairs_a_wrong_start():
    """From y + s_1 xi the chain misses a_1 (x0 - y); corrections at every level bring the mean back (SGMSE+'s use of
    them).
    """
    path, grid = OUVE(), linear(1.0, 0.03, 30)
    s, exact = level(path, 1.0)[2], marginal(path, 0.03)[0]

    def mean(solver):
        world = Algebra(path, 200)
        return sample(world, world.start(ANCHOR, s**2), path, solver, grid, world.y, world.noise)[0, 0].item()

    plain, corrected = (abs(mean(v) - exact) for v in (EulerMaruyama(), PredictorCorrector(snr=0.5)))
    assert corrected < 0.5 * plain


def test_without_corrections_the_predictor_is_alone():
    grid = linear(1.0, 0.03, 5)
    for predictor in (EulerMaruyama(), Ancestral(), Heun()):
        assert PredictorCorrector(predictor, corrections=0).plan(OUVE(), grid) == predictor.plan(OUVE(), grid)


def test_predictors_with_a_memory_are_refused():
    with pytest.raises(ValueError, match="DPMpp2M"):
        PredictorCorrector(DPMpp2M())
    with pytest.raises(ValueError, match="allowed: both >= 0"):
        PredictorCorrector(snr=-1.0)


@pytest.mark.parametrize("solver", [EulerMaruyama(), Ancestral(), PredictorCorrector()], ids=name)
def test_mean_at_end_drops_the_very_last_noise_alone(solver):
    grid = linear(1.0, 0.03, 4)
    plain, mean = solver.plan(OUVE(), grid), MeanAtEnd(solver).plan(OUVE(), grid)
    assert plain[:-1] == mean[:-1]
    assert plain[-1].noise > 0
    assert mean[-1] == plain[-1]._replace(noise=0.0)
    assert MeanAtEnd(solver).order == solver.order


@pytest.mark.parametrize(
    "solver",
    [
        *EVERY_CHAIN.values(),
        MeanAtEnd(PredictorCorrector(EulerMaruyama(NoiseDiffusion(0.3)), 0.2, 2)),
        BridgeStart(Ancestral(), 1.0, True),
        MeanRevertingEuler(OwnDiffusion(0.0)),
        InterpolantHeun(ConstantDiffusion(0.4)),
    ],
    ids=str,
)
def test_solvers_are_saved_and_rebuilt(solver):
    assert build(json.loads(json.dumps(describe(solver)))) == solver


def test_the_order_does_not_depend_on_the_grid():
    path = VP()
    coarse, fine = (errors(path, StochasticHeun(), LogSNR(end=0.05)(path, n)[:-1]) for n in (100, 200))
    assert math.log2(max(coarse) / max(fine)) == pytest.approx(2, abs=0.25)
