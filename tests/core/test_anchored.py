"""Anchored paths: bridges, mean-reverting, residual and OUVE samplers against their published formulas."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from golden_cases import Case, Golden
from golden_families import anchored as anchored_families
from golden_families import ctm
from worlds import GOLDEN, correlated, golden_ids, name, normal, over

from fewstep.denoiser import Denoiser
from fewstep.estimate import Estimate
from fewstep.grids import LogSNR, Spaced, Uniform
from fewstep.guidance.next_time import NextTime
from fewstep.paths import EDM, VP, Path, ResidualShift
from fewstep.paths.interpolant import Interpolant, Parabola
from fewstep.paths.mean_reverting import MeanReverting
from fewstep.paths.ouve import OUVE
from fewstep.paths.residual_denoising import ResidualDenoising
from fewstep.paths.sbve import SBVE
from fewstep.prediction import X0, Residual, Score
from fewstep.sampling import anchored, sample
from fewstep.solvers.ancestral import Ancestral, UnitGainAncestral
from fewstep.solvers.bridge import BridgeStart
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.diffusion import OwnDiffusion
from fewstep.solvers.dpm_multistep import DPM2M, DPMMultistep, DPMpp3M
from fewstep.solvers.dpm_sde import DPMMultistepSDE, DPMpp2MSDE
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.euler_maruyama import EulerMaruyama
from fewstep.solvers.gamma import GammaSampling
from fewstep.solvers.heun import Heun
from fewstep.solvers.mean_at_end import MeanAtEnd
from fewstep.solvers.mean_reverting import MeanRevertingEuler
from fewstep.solvers.predictor_corrector import PredictorCorrector
from fewstep.solvers.residual_ancestral import ResidualAncestral
from fewstep.solvers.stochastic_heun import StochasticHeun
from fewstep.toy import gaussian

# --- golden vectors --------------------------------------------------------------------------------------------

FAMILIES = {**anchored_families.FAMILIES, **ctm.FAMILIES}


@pytest.mark.parametrize("case_id", [i for family in FAMILIES for i in golden_ids(family)])
def test_official_samplers_are_reproduced(case_id):
    golden = Golden(GOLDEN / "solvers_dev.json")
    case = next(c for c in golden.cases() if c["id"] == case_id)
    for what, ours, official in FAMILIES[case["family"]](case):
        torch.testing.assert_close(
            ours.double(), official.double(), rtol=case["rtol"], atol=case["atol"], msg=lambda m: f"{what}: {m}"
        )


def test_the_mapping_follows_the_fields_of_a_case():
    """Other parameters give other numbers: nothing is keyed by the id of a case."""
    if not (GOLDEN / "solvers_dev.json").is_file():
        pytest.skip(f"no golden vectors at {GOLDEN}")
    golden, changes = Golden(GOLDEN / "solvers_dev.json"), 0
    for fields in json.loads((GOLDEN / "solvers_dev.json").read_text())["cases"]:
        if fields["family"] not in FAMILIES:
            continue
        run = FAMILIES[fields["family"]]
        ours = {what: v for what, v, _ in run(Case(golden, fields))}["out"]
        for section, key, value in (
            ("params", "max_sigma", 30),
            ("params", "eps", 0.01),
            ("params", "theta", 1.0),
            ("params", "k", 2.0),
            ("params", "kappa", 1.0),
            ("sample_kwargs", "snr", 0.3),
            ("sample_kwargs", "corrector_steps", 1),
            ("sample_kwargs", "gamma", 0.7),
        ):
            if key in fields.get(section, {}) and fields[section][key] != value and "+ None" not in fields["function"]:
                moved = fields | {section: fields[section] | {key: value}, "id": "another"}
                other = {what: v for what, v, _ in run(Case(golden, moved))}["out"]
                assert not torch.allclose(ours, other, rtol=1e-6)
                changes += 1
    assert changes >= 12


# --- bridges ---------------------------------------------------------------------------------------------------


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def clock(path, t):
    """(S(t), sqrt(S_T^2 - S^2(t)), S_T) of SB-VE."""
    s2, total = path.s2(times(t)).item(), path.s2(times(1.0)).item()
    return math.sqrt(s2), math.sqrt(total - s2), math.sqrt(total)


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.7), (0.5, 0.1), (0.2, 1e-4)])
def test_sb_ode_is_ddim_on_the_bridge(t, s):
    """Weights of arXiv:2409.10753 as coded in SGMSE: x <- w1 x + w2 x0 + w3 y."""
    path = SBVE()
    (sp, bar_p, total), (sq, bar_q, _) = clock(path, t), clock(path, s)
    (row,) = anchored(DDIM().plan(path, times(t, s)), path)
    assert row.x[0] == pytest.approx(sq * bar_q / (sp * bar_p), rel=1e-10)
    assert row.e[0] == pytest.approx((bar_q**2 - bar_p * sq * bar_q / sp) / total**2, rel=1e-10)
    assert row.y == pytest.approx((sq**2 - sp * sq * bar_q / bar_p) / total**2, rel=1e-9)


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.7), (0.5, 0.1), (0.2, 1e-4), (1.0, 0.8)])
def test_sb_sde_is_ancestral_on_the_bridge(t, s):
    """x <- (S_q^2/S_p^2) x + (1 - S_q^2/S_p^2) x0 + S_q sqrt(1 - S_q^2/S_p^2) xi, also out of t = 1, where x is y."""
    path = SBVE()
    ratio = (clock(path, s)[0] / clock(path, t)[0]) ** 2
    (row,) = anchored(BridgeStart(Ancestral()).plan(path, times(t, s)), path)
    assert row.x[0] + row.y == pytest.approx(ratio, rel=1e-10)
    assert row.x[0] == pytest.approx(ratio if t < 1 else 0.0, rel=1e-10)
    assert row.e[0] == pytest.approx(1 - ratio, rel=1e-10)
    assert row.noise == pytest.approx(clock(path, s)[0] * math.sqrt(1 - ratio), rel=1e-10)


@pytest.mark.parametrize("path", [SBVE(), Interpolant(gamma=Parabola(1.5)), Interpolant()], ids=str)
@pytest.mark.parametrize(
    "solver", [DDIM(), DPMpp2M(), Heun(), EulerMaruyama(OwnDiffusion(0.0)), BridgeStart(Ancestral())], ids=name
)
def test_bridges_start_at_their_anchor(path, solver):
    """The first step knows y alone; one step to the clean end is x0 as the network predicts it: a predictive model."""
    y = normal(5, 3, seed=1)
    world = correlated(path, y)
    for n in (1, 2, 4):
        assert sample(world, y, path, solver, Uniform()(path, n), y, torch.Generator()).isfinite().all()
    x0 = world(y, path.t_max).x0
    one = sample(world, y, path, solver, Uniform()(path, 1), y, torch.Generator())
    torch.testing.assert_close(one, x0, rtol=1e-12, atol=1e-12)
    a, b, s = path.schedule(times(0.6))
    xi = normal(5, 3, seed=2)
    first = sample(world, y, path, solver, times(1.0, 0.6), y, lambda row: xi)
    noise = s * xi if isinstance(solver, BridgeStart) else 0.0
    torch.testing.assert_close(first, a * x0 + b * y + noise, rtol=1e-12, atol=1e-12)


def test_the_published_first_step_weighs_the_anchor_too_much():
    """k = 2.6, c = 0.4, N = 10: weight .835 of y in place of b = .796."""
    path, grid = SBVE(), torch.linspace(1, 1e-4, 11, dtype=torch.float64)
    ours = anchored(BridgeStart(DDIM(), eta=0.0).plan(path, grid), path)
    official = anchored(BridgeStart(DDIM(), eta=0.0, official=True).plan(path, grid), path)
    assert ours[0].y == pytest.approx(0.796, abs=5e-4)
    assert official[0].y == pytest.approx(0.835, abs=5e-4)
    assert ours[1:] == official[1:]
    assert ours == anchored(DDIM().plan(path, grid), path)
    with pytest.raises(ValueError, match="SB-VE, not of Interpolant"):
        BridgeStart(DDIM(), official=True).plan(Interpolant(gamma=Parabola()), times(1.0, 0.5))


def test_bridge_start_changes_nothing_elsewhere():
    for path, grid in ((SBVE(), times(0.9, 0.5, 0.1)), (VP(), times(1.0, 0.5, 0.0)), (OUVE(), times(1.0, 0.5, 0.0))):
        for solver in (Ancestral(), DPMpp2M(), Heun()):
            assert BridgeStart(solver).plan(path, grid) == solver.plan(path, grid)
            assert BridgeStart(solver).order == solver.order


def bridge_moments(n):
    """End point of n steps of SB-SDE from y for x0 ~ N(.8, .3): (mean, variance) and the exact ones. Every step is
    affine.
    """
    path, grid = SBVE(), torch.linspace(1, 0.02, n + 1, dtype=torch.float64)
    m, v, y = 0.8, 0.3, -1.5
    mean = var = 0.0
    for row in BridgeStart(Ancestral()).plan(path, grid):
        a, _, s = (k.item() for k in path.schedule(times(row.t)))
        gain = a * v / (a**2 * v + s**2) if row.t < 1 else 0.0
        mean = row.x[0] * mean + row.e[0] * (m + gain * (mean - a * m))
        var = (row.x[0] + row.e[0] * gain) ** 2 * var + row.noise**2
    a, b, s = (k.item() for k in path.schedule(grid[-1]))
    return mean + b * y, var, a * m + b * y, a**2 * v + s**2


def test_sb_sde_has_the_marginal_of_the_bridge_to_first_order():
    gaps = []
    for n in (200, 400):
        mean, var, exact_mean, exact_var = bridge_moments(n)
        assert mean == pytest.approx(exact_mean, abs=1e-12)
        gaps.append(abs(var - exact_var))
    assert gaps[1] < 0.01
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(1, abs=0.2)


def test_next_time_asks_for_the_end_of_the_step():
    path, y, grid = SBVE(), normal(4, 3, seed=1), times(1.0, 0.6, 0.2)
    world, x = correlated(path, y), normal(4, 3)
    wrapped = NextTime(world, path, grid, y)
    ours = wrapped(x, 0.6)
    torch.testing.assert_close(ours.x0, world(x, 0.2).x0, rtol=0, atol=0)
    a, b, s = path.schedule(times(0.6))
    torch.testing.assert_close(a * ours.x0 + b * y + s * ours.eps, x, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="not from 0.3"):
        wrapped(x, 0.3)


# --- MRS: the solvers of VP on the centred variable ------------------------------------------------------------


@dataclass(frozen=True)
class Centred(Path):
    """The VP path with the times of a mean-reverting one: (a, 0, sqrt(1 - a^2))."""

    like: MeanReverting

    @property
    def t_max(self):
        return self.like.t_max

    def schedule(self, t):
        a, _, s = self.like.schedule(t)
        return a, torch.zeros_like(t), s / self.like.sigma_max


MRS = {
    "ode data 1": DPMMultistep(k=1),
    "ode data 2": DPMpp2M(),
    "ode noise 1": DPMMultistep(k=1, uses="eps"),
    "ode noise 2": DPM2M(),
    "ode data 3": DPMpp3M(variant="exact"),
    "sde data 1": DPMMultistepSDE(k=1),
    "sde data 2": DPMpp2MSDE(),
}


def mrs_grid(path, n):
    """n equal steps in lambda from T to index 1; the step to the clean end is left out."""
    return LogSNR(end=1.0)(path, n + 1)[:-1]


@pytest.mark.parametrize("solver", over(MRS))
def test_mrs_is_the_vp_solver_bit_for_bit_where_lambda_is_one_and_y_zero(solver):
    path = MeanReverting(steps=100, sigma_max=1.0)
    grid, x, xi = mrs_grid(path, 6), normal(4, 3), normal(4, 3, seed=5)
    world = correlated(Centred(path))
    ours = sample(world, x, path, solver, grid, torch.zeros(4, 3, dtype=torch.float64), lambda row: xi)
    assert torch.equal(ours, sample(world, x, Centred(path), solver, grid, generator=lambda row: xi))


@pytest.mark.parametrize("solver", over(MRS))
def test_mrs_is_the_vp_solver_on_the_rescaled_centred_state(solver):
    """x = y + lam z: with the eps of the same state and x0 - y = lam x0', everything scales."""
    path = MeanReverting(steps=100, sigma_max=0.2)
    y, x, xi, grid = normal(4, 3, seed=1), normal(4, 3), normal(4, 3, seed=5), mrs_grid(path, 6)
    world = correlated(Centred(path))

    def anchored_world(x, t):
        inner = world((x - y) / path.sigma_max, t)
        return Estimate(y + path.sigma_max * inner.x0, inner.eps)

    ours = sample(anchored_world, y + path.sigma_max * x, path, solver, grid, y, lambda row: xi)
    vp = sample(world, x, Centred(path), solver, grid, generator=lambda row: xi)
    torch.testing.assert_close(ours, y + path.sigma_max * vp, rtol=1e-12, atol=1e-12)


def test_mrs_steps_are_those_of_the_paper():
    """arXiv:2502.07856 in x, x0, y: first and second order, data and noise, ODE and SDE."""
    path, grid = MeanReverting(sigma_max=0.2), times(80.0, 50.0, 30.0)
    a, _, s = (v.tolist() for v in path.schedule(grid))
    h_prev, h = (-(path.log_snr(grid).diff())).neg().tolist()

    def rows(solver):
        return anchored(solver.plan(path, grid), path)[1]

    ode, sde, noise = rows(DPMMultistep(k=1)), rows(DPMMultistepSDE(k=1)), rows(DPMMultistep(k=1, uses="eps"))
    keep, gain = s[2] / s[1], a[2] * (1 - math.exp(-h))
    assert (ode.x[0], ode.e[0], ode.y) == pytest.approx((keep, gain, 1 - keep - gain), rel=1e-9)
    keep, gain = s[2] / s[1] * math.exp(-h), a[2] * (1 - math.exp(-2 * h))
    assert (sde.x[0], sde.e[0], sde.y) == pytest.approx((keep, gain, 1 - keep - gain), rel=1e-9)
    assert sde.noise == pytest.approx(s[2] * math.sqrt(1 - math.exp(-2 * h)), rel=1e-9)
    keep = a[2] / a[1]
    assert (noise.x[0], noise.e[0], noise.y) == pytest.approx((keep, -s[2] * math.expm1(h), 1 - keep), rel=1e-9)
    r = h_prev / h
    second, gain = rows(DPMpp2M()), a[2] * (1 - math.exp(-h))
    assert second.e == pytest.approx((gain * (1 + 1 / (2 * r)), -gain / (2 * r)), rel=1e-9)
    second, gain = rows(DPMpp2MSDE()), a[2] * (1 - math.exp(-2 * h))
    assert second.e == pytest.approx((gain * (1 + 1 / (2 * r)), -gain / (2 * r)), rel=1e-9)


def mrs_error(solver, n, grid_of=mrs_grid):
    path = MeanReverting(sigma_max=50 / 255)
    y = normal(16, 2, seed=1)
    world = gaussian(path, torch.tensor([0.5, -0.2]), 0.3, dim=2, y=y)
    x0 = world.draw(16, torch.Generator().manual_seed(2))
    x = path.sample(x0, normal(16, 2, seed=3), torch.full((16,), path.t_max, dtype=torch.float64), y)
    grid = grid_of(path, n)
    exact = world.flow_map(x, grid[0].item(), grid[-1].item())
    return (sample(world, x, path, solver, grid, y) - exact).abs().max().item()


@pytest.mark.parametrize("solver", over({k: v for k, v in MRS.items() if k.startswith("ode")}))
def test_mrs_has_its_order(solver):
    coarse, fine = mrs_error(solver, 64), mrs_error(solver, 128)
    assert math.log2(coarse / fine) > solver.order - 0.3


def test_mrs_needs_a_tenth_of_the_steps_of_euler():
    def indices(path, n):
        return torch.arange(path.steps, 0, -1, dtype=torch.float64)

    assert mrs_error(DPMpp2M(), 10) < mrs_error(MeanRevertingEuler(OwnDiffusion(0.0)), 99, indices)


# --- IR-SDE ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", [100, 57, 2])
def test_ir_sde_steps_are_the_published_ones(i):
    path = MeanReverting(sigma_max=0.1)
    index, grid = times(float(i)), times(float(i), i - 1.0)
    x, x0, y, xi = (normal(4, 3, seed=k) for k in range(4))
    a, b, s = path.schedule(index)
    eps = (x - a * x0 - b * y) / s
    theta, sigma, dt = path.theta(index), path.sigma(index), path.dt

    def run(solver):
        return sample(lambda x, t: Estimate(x0, eps), x, path, solver, grid, y, lambda row: xi)

    sde = x - (theta * (y - x) + sigma**2 * eps / s) * dt + sigma * math.sqrt(dt) * xi
    torch.testing.assert_close(run(MeanRevertingEuler()), sde, rtol=1e-11, atol=1e-11)
    ode = x - (theta * (y - x) + 0.5 * sigma**2 * eps / s) * dt
    torch.testing.assert_close(run(MeanRevertingEuler(OwnDiffusion(0.0))), ode, rtol=1e-11, atol=1e-11)
    decay, now, before = (-theta * dt).exp(), a, path.schedule(index - 1)[0]
    mean = y + decay * (1 - before**2) / (1 - now**2) * (x - y) + before * (1 - decay**2) / (1 - now**2) * (x0 - y)
    std = path.sigma_max * ((1 - decay**2) * (1 - before**2) / (1 - now**2)).sqrt()
    torch.testing.assert_close(run(Ancestral()), mean + std * xi, rtol=1e-10, atol=1e-10)


def test_euler_does_not_recover_the_data_of_an_oracle_and_the_posterior_does():
    def gap(solver, n):
        path = MeanReverting(steps=n, sigma_max=0.1)
        x0, y, eps = (normal(4, 3, seed=k) for k in range(3))
        x = path.sample(x0, eps, torch.full((4,), float(n), dtype=torch.float64), y)
        grid = torch.arange(n, -1, -1, dtype=torch.float64)

        def oracle(x, t):
            a, b, s = path.schedule(times(t))
            return Estimate(x0, (x - a * x0 - b * y) / s)

        return (sample(oracle, x, path, solver, grid, y, torch.Generator().manual_seed(1)) - x0).abs().max().item()

    assert gap(Ancestral(), 50) < 1e-12
    coarse, fine = gap(MeanRevertingEuler(OwnDiffusion(0.0)), 100), gap(MeanRevertingEuler(OwnDiffusion(0.0)), 200)
    assert 1e-4 < fine < 0.6 * coarse


def test_mean_reverting_euler_names_what_it_needs():
    with pytest.raises(ValueError, match="not on VP"):
        MeanRevertingEuler().plan(VP(), times(1.0, 0.5))
    with pytest.raises(ValueError, match="integer indices"):
        MeanRevertingEuler().plan(MeanReverting(), times(10.5, 9.5))


# --- RDDM and ResShift -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("t", "s"), [(999.0, 799.0), (500.0, 499.0), (0.0, -1.0)])
def test_rddm_step_in_residual_and_noise(t, s, eta):
    """x_s = x_t - (A_t - A_s) r - (sqrt(B_t) - sqrt(B_s - v)) eps + sqrt(v) xi."""
    path = ResidualDenoising(sum_scale=0.01)
    x0, y, eps, xi = (normal(4, 3, seed=k) for k in range(4))
    (_, big, level), (_, small, after) = path.schedule(times(t)), path.schedule(times(s))
    x = path.sample(x0, eps, times(t).expand(4), y)
    v = eta**2 * (level**2 - after**2) * after**2 / level**2
    expected = x - (big - small) * (y - x0) - (level - (after**2 - v).sqrt()) * eps + v.sqrt() * xi
    oracle = lambda x, t: Estimate(x0, eps)
    ours = sample(oracle, x, path, ResidualAncestral(eta), times(t, s), y, lambda row: xi)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def test_rddm_at_full_noise_is_unit_gain_and_not_markov():
    path, grid = ResidualDenoising(), times(999.0, 500.0, 100.0, -1.0)
    full = UnitGainAncestral().plan(path, grid)
    assert ResidualAncestral(1.0).plan(path, grid) == full
    assert Ancestral().plan(path, grid)[1].noise != pytest.approx(full[1].noise, rel=0.01)


@pytest.mark.parametrize("path", [ResidualShift(), ResidualDenoising()], ids=name)
def test_composing_unit_gain_posteriors_gives_the_marginal(path):
    """q(x_s | x_t, x0) after q(x_t | x0) is q(x_s | x0): mean and variance of the chain of an oracle, any grid."""
    grid = Uniform()(path, 5)[:-1]
    var = path.schedule(grid[:1])[2] ** 2
    for row in UnitGainAncestral().plan(path, grid):
        var = row.x[0] ** 2 * var + row.noise**2
        a, _, s = path.schedule(times(row.s))
        assert row.x[0] * path.schedule(times(row.t))[0].item() + row.e[0] == pytest.approx(a.item(), rel=1e-12)
        assert var.item() == pytest.approx(s.item() ** 2, rel=1e-12)


def test_sinsr_step_weighs_to_one():
    """k + m + j = 1: an image equal to its anchor everywhere stays."""
    path = ResidualShift()
    for row in anchored(DDIM().plan(path, Spaced("floor")(path, 15)), path):
        assert row.x[0] + row.e[0] + row.y == pytest.approx(1.0, abs=1e-13)


def test_an_untrained_residual_network_returns_the_anchor():
    """Residual 0 means x0 = y: DDIM from any start ends at y, for any number of steps."""
    path, y = ResidualShift(), normal(4, 3, seed=1)
    denoiser = Denoiser(torch.nn.Module(), path, Residual())
    denoiser.net.forward = lambda x, t: torch.zeros_like(x)
    for n in (1, 3):
        out = sample(denoiser.bind(y=y), path.start(normal(4, 3), y), path, DDIM(), Uniform()(path, n), y)
        torch.testing.assert_close(out, y, rtol=1e-12, atol=1e-12)


# --- what holds on every anchored path -------------------------------------------------------------------------

ANCHORED = {
    "ouve": (OUVE(), 1.0, 0.03),
    "sbve": (SBVE(), 1.0, 1e-4),
    "irsde": (MeanReverting(sigma_max=0.2), 100.0, 1.0),
    "rddm": (ResidualDenoising(), 999.0, -1.0),
    "resshift": (ResidualShift(), 14.0, -1.0),
    "interpolant": (Interpolant(gamma=Parabola(1.5)), 1.0, 0.0),
}
EXACT_IN_Y = [DDIM(), DPMpp2M(), Heun(), BridgeStart(Ancestral()), BridgeStart(DPMpp2MSDE()), GammaSampling(0.5)]


@pytest.mark.parametrize(("path", "hi", "lo"), [pytest.param(*v, id=k) for k, v in ANCHORED.items()])
@pytest.mark.parametrize("solver", EXACT_IN_Y, ids=name)
def test_shifting_the_anchor_shifts_the_end_by_its_weight(solver, path, hi, lo):
    grid = torch.linspace(hi, lo, 6, dtype=torch.float64)
    x, y, c = normal(6, 3), normal(6, 3, seed=1), normal(6, 3, seed=2)
    b = path.schedule(grid)[1]
    x = b[0] * y + path.schedule(grid)[2][0] * x

    def run(x, y):
        return sample(correlated(path, y), x, path, solver, grid, y, torch.Generator().manual_seed(3))

    torch.testing.assert_close(run(x + b[0] * c, y + c), run(x, y) + b[-1] * c, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [EulerMaruyama(), StochasticHeun()], ids=name)
def test_discretised_drifts_shift_with_the_anchor_to_their_order(solver):
    path, c = OUVE(), normal(6, 3, seed=2)
    x, y = normal(6, 3), normal(6, 3, seed=1)

    def gap(n):
        grid = torch.linspace(1, 0.03, n + 1, dtype=torch.float64)
        b = path.schedule(grid)[1]

        def run(x, y):
            return sample(correlated(path, y), x, path, solver, grid, y, torch.Generator().manual_seed(3))

        return (run(x + b[0] * c, y + c) - run(x, y) - b[-1] * c).abs().max().item()

    assert math.log2(gap(80) / gap(160)) == pytest.approx(solver.order, abs=0.3)


class ComplexGaussian:
    """x0 ~ circular complex normal around `mean` with E|x0 - mean|^2 = var, on an anchored path."""

    def __init__(self, path, mean, var, y):
        self.path, self.mean, self.var, self.y = path, mean, var, y

    def __call__(self, x, t):
        a, b, s = (v.item() for v in self.path.schedule(times(t)))
        off = (x - b * self.y - a * self.mean) / (a**2 * self.var + s**2)
        return Estimate(self.mean + a * self.var * off, s * off)


COMPLEX = {
    "pc": MeanAtEnd(PredictorCorrector(EulerMaruyama(), snr=0.5)),
    "heun sde": StochasticHeun(),
    "ancestral": Ancestral(),
    "dpm++": DPMpp2M(),
    "gamma": GammaSampling(0.5),
}


@pytest.mark.parametrize("solver", over(COMPLEX))
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_spectra_are_two_real_channels(solver, dtype):
    """The noise of a complex state has unit variance split over its parts; drawn here once for both runs."""
    path, grid = OUVE(), torch.cat([torch.linspace(1, 0.03, 6, dtype=torch.float64), times(0.0)])
    mean, y, start = (torch.complex(normal(4, 3, seed=k), normal(4, 3, seed=k + 9)) for k in range(3))
    drawn = [torch.complex(normal(4, 3, seed=k), normal(4, 3, seed=k + 50)) / 2**0.5 for k in range(40)]
    split = torch.view_as_real

    def run(convert, to):
        noise = iter(drawn)
        world = ComplexGaussian(path, convert(mean).to(to), 0.3, convert(y).to(to))
        return sample(
            world, convert(start).to(to), path, solver, grid, convert(y).to(to), lambda row: convert(next(noise)).to(to)
        )

    out, real = run(lambda v: v, dtype), run(split, torch.float64)
    assert out.dtype == dtype
    tolerance = 1e-12 if dtype == torch.complex128 else 2e-4
    torch.testing.assert_close(split(out).double(), real, rtol=tolerance, atol=tolerance)


def test_a_complex_score_network_runs_folded():
    """SGMSE+: a score network on complex states through Denoiser, against the same score called step by step."""
    path, grid = OUVE(), torch.cat([torch.linspace(1, 0.03, 6, dtype=torch.float64), times(0.0)])
    mean, y, x = (torch.complex(normal(4, 3, seed=k), normal(4, 3, seed=k + 9)) for k in range(3))
    world = ComplexGaussian(path, mean, 0.3, y)

    class Net(torch.nn.Module):
        def forward(self, x, t):
            return -world(x, t[0].item()).eps / path.schedule(t[0].double())[2]

    solver = COMPLEX["pc"]
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    ours = sample(Denoiser(Net(), path, Score()).bind(y=y), x, path, solver, grid, y, generators[0])
    torch.testing.assert_close(ours, sample(world, x, path, solver, grid, y, generators[1]), rtol=1e-10, atol=1e-10)


def test_complex_noise_has_unit_variance():
    path = OUVE()
    y = torch.zeros(20_000, 1, dtype=torch.complex128)
    world = ComplexGaussian(path, torch.zeros_like(y), 0.3, y)
    generator = torch.Generator().manual_seed(5)
    a, _, s = (v.item() for v in path.schedule(times(1.0)))
    x = (a**2 * 0.3 + s**2) ** 0.5 * torch.randn(y.shape, dtype=y.dtype, generator=generator)
    out = sample(world, x, path, StochasticHeun(), torch.linspace(1, 0.03, 41, dtype=torch.float64), y, generator)
    a, _, s = (v.item() for v in path.schedule(times(0.03)))
    var, n = a**2 * 0.3 + s**2, len(y)
    assert abs(out.abs().square().mean() - var) < 4 * var / math.sqrt(n) + 2e-3 * var
    assert abs(out.real.var() / out.imag.var() - 1) < 4 * 2 / math.sqrt(n)


def test_sgmse_sampling_counts_and_ends_as_published():
    """30 predictor-corrector steps are 60 evaluations; the last step has length t_eps and adds no noise."""
    grid = torch.cat([torch.linspace(1, 0.03, 30, dtype=torch.float64), times(0.0)])
    rows = COMPLEX["pc"].plan(OUVE(), grid)
    assert sum(bool(r.e) for r in rows) == 60
    assert (rows[-1].t, rows[-1].s, rows[-1].noise) == (pytest.approx(0.03), 0.0, 0.0)
    step = 2 * (0.5 * OUVE().schedule(times(1.0))[2].item()) ** 2
    assert rows[0].noise == pytest.approx(math.sqrt(2 * step))


@pytest.mark.parametrize("prediction", [X0(), Score()], ids=name)
def test_drift_errors_in_y_survive_folding(prediction):
    """Row.y of Euler's steps reaches the loop over raw network outputs."""
    path, y, grid = OUVE(), normal(4, 3, seed=1), torch.linspace(1, 0.03, 6, dtype=torch.float64)
    world, x = correlated(path, y), normal(4, 3)

    class Net(torch.nn.Module):
        def forward(self, x, t):
            exact = world(x, t)
            return prediction.target(exact.x0, exact.eps, path.coeffs(t, x), y)

    bound = Denoiser(Net(), path, prediction).bind(y=y)
    for solver in (EulerMaruyama(), StochasticHeun(), PredictorCorrector()):
        folded = sample(bound, x, path, solver, grid, y, torch.Generator().manual_seed(1))
        plain = sample(world, x, path, solver, grid, y, torch.Generator().manual_seed(1))
        torch.testing.assert_close(folded, plain, rtol=1e-10, atol=1e-10)


def test_paths_without_an_anchor_have_no_weight_of_it():
    for solver in (EulerMaruyama(), StochasticHeun(), PredictorCorrector()):
        assert all(r.y == 0 for r in solver.plan(EDM(), times(5.0, 3.0, 1.0)))
