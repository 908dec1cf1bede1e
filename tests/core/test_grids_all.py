"""Grids beyond the basic ones: decreasing between exact ends, and the published formulas of each."""

import json
import math

import numpy as np
import pytest
import torch
from test_paths_all import MONOTONE
from worlds import golden_case, golden_ids

from fewstep.artifacts import build, describe
from fewstep.grids import (
    AlignYourSteps,
    Beta,
    DynamicShifted,
    Explicit,
    Fast,
    Karras,
    LCMSpaced,
    LogSNR,
    Matched,
    Polyexponential,
    Shifted,
    Spaced,
    ThenClean,
    Uniform,
)
from fewstep.grids.align_your_steps import LEVELS, TIMESTEPS
from fewstep.grids.beta import beta_quantile
from fewstep.grids.fast import fast_orders
from fewstep.paths import DDPM, EDM, VE, VP, RectifiedFlow, ResidualShift
from fewstep.paths.ouve import OUVE
from fewstep.paths.sbve import SBVE

SD = DDPM(1000, 0.00085, 0.012, scaled=True)
RDDM = MONOTONE["rddm"]

# grid, path, first and last time.
CASES = {
    "polyexponential-edm": (Polyexponential(), EDM(), 80.0, 0.0),
    "polyexponential-kept": (Polyexponential(2.0, 0.02, clean=False), VE(), 1.0, None),
    "polyexponential-vp": (Polyexponential(0.7, 0.02), VP(), 1.0, 0.0),
    "karras-kept": (Karras(clean=False), EDM(), 80.0, 0.002),
    "beta-t": (Beta(), RectifiedFlow(), 1.0, 0.0),
    "beta-t-end": (Beta(0.9, 0.4, end=1e-3), VP(), 1.0, 1e-3),
    "beta-index": (Beta(), SD, 999.0, -1.0),
    "beta-sigma": (Beta(over="sigma"), SD, 999.0, -1.0),
    "ays15-sd": (AlignYourSteps(), SD, 999.0, -1.0),
    "aysxl-sd": (AlignYourSteps("sdxl"), SD, 999.0, -1.0),
    "ays-svd": (AlignYourSteps("svd"), EDM(700.0), None, 0.0),
    "ays-flow": (AlignYourSteps(), RectifiedFlow(), None, 0.0),
    "clean-ouve": (ThenClean(Uniform(end=0.03)), OUVE(), 1.0, 0.0),
    "lu": (LogSNR(end=0.0), SD, 999.0, -1.0),
    "sbve": (Uniform(end=1e-4), SBVE(), 1.0, 1e-4),
    "matched": (Matched(VP(), Uniform(end=1e-3)), EDM(200.0), None, None),
    "matched-back": (Matched(EDM(200.0), Karras(clean=False)), VP(), 1.0, None),
    "matched-clean": (Matched(RectifiedFlow(), Uniform()), SD, 999.0, -1.0),
    "fast3": (Fast(3, end=1e-3), VP(), 1.0, 0.0),
    "fast2": (Fast(2, start=0.999, end=1e-3), RectifiedFlow(), 1.0, 0.0),
    "fast-ve": (Fast(), VE(), 1.0, 0.0),
    "fast-table": (Fast(end=0.0), SD, 999.0, -1.0),
    "shifted-end": (Shifted(3.0, end=0.01), RectifiedFlow(), 1.0, 3 * 0.01 / 1.02),
    "dynamic": (DynamicShifted(1024), RectifiedFlow(), 1.0, 0.0),
    "dpm_linspace": (Spaced("dpm_linspace"), SD, 999.0, -1.0),
    "dpm_leading": (Spaced("dpm_leading", offset=1), SD, None, -1.0),
    "trailing-rddm": (Spaced("trailing"), RDDM, 999.0, -1.0),
    "linspace-kept": (Spaced("dpm_linspace", end=0.0), SD, 999.0, 0.0),
    "lcm": (LCMSpaced(), SD, 999.0, -1.0),
}
EVERY = pytest.mark.parametrize(("grid", "path", "first", "last"), CASES.values(), ids=CASES)


def close(ours, theirs, tol=1e-12):
    torch.testing.assert_close(ours, torch.as_tensor(theirs, dtype=torch.float64), rtol=tol, atol=tol)


def at(t):
    return torch.tensor(t, dtype=torch.float64)


def rho(path, t):
    return (-path.log_snr(t)).exp()


@EVERY
def test_times_strictly_decrease_between_exact_ends(grid, path, first, last):
    for n in (1, 2, 3, 4, 6, 7, 12, 15):
        t = grid(path, n)
        assert t.dtype == torch.float64
        assert t.shape == (n + 1,)
        assert (t[:-1] > t[1:]).all()
        assert path.t_min <= t[-1]
        assert t[0] <= path.t_max
        if first is not None:
            assert t[0].item() == first
        if last is not None:
            assert t[-1].item() == pytest.approx(last, rel=1e-13)
        lam = path.log_snr(t)
        assert (lam[:-1] < lam[1:]).all()


@EVERY
def test_grids_need_a_step(grid, path, first, last):
    with pytest.raises(ValueError, match="step"):
        grid(path, 0)


@EVERY
def test_grids_are_rebuilt_from_their_description(grid, path, first, last):
    again = build(json.loads(json.dumps(describe(grid))))
    assert again == grid
    assert torch.equal(again(path, 3), grid(path, 3))


# --- levels of s/a ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 18])
def test_exponential_and_polyexponential_levels_are_k_diffusions(n):
    exponential = np.exp(np.linspace(math.log(80), math.log(0.002), n))
    close(Polyexponential()(EDM(), n), np.append(exponential, 0.0), 1e-11)
    ramp = np.linspace(1, 0, n) ** 2.5
    poly = np.exp(ramp * (math.log(40) - math.log(0.01)) + math.log(0.01))
    close(Polyexponential(2.5, 0.01, 40.0)(EDM(40.0), n), np.append(poly, 0.0), 1e-11)


@pytest.mark.parametrize("n", [2, 10])
def test_k_diffusions_vp_levels_are_those_of_the_vp_path(n):
    """sigma = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) at t = linspace(1, 1e-3, n), then 0."""
    t = np.linspace(1, 1e-3, n)
    sigma = np.sqrt(np.expm1(19.9 * t**2 / 2 + 0.1 * t))
    close(ThenClean(Matched(VP(), Uniform(end=1e-3)))(EDM(200.0), n), np.append(sigma, 0.0), 1e-9)


@pytest.mark.parametrize("case_id", [i for i in golden_ids("k_diffusion") if i in ("d_k_01", "d_k_06")])
def test_official_levels(case_id):
    case, array = golden_case(case_id)
    given = case["grid"]
    grid = (
        Karras(7.0, given["sigma_min"], given["sigma_max"])
        if given["kind"] == "karras"
        else ThenClean(Matched(VP(), Uniform(end=1e-3)))
    )
    close(grid(EDM(200.0), given["n"]), array("sigmas"), 1e-11)


def test_levels_of_a_kept_end_stop_at_sigma_min():
    t = Karras(clean=False)(EDM(), 9)
    close(t[:-1], Karras()(EDM(), 10)[:-2], 1e-12)
    assert t[-1].item() == pytest.approx(0.002)
    assert rho(VP(), Polyexponential(1.0, 0.05, clean=False)(VP(), 6))[-1].item() == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("alpha", "beta", "quantile"),
    [
        pytest.param(1.0, 1.0, lambda u: u, id="uniform"),
        pytest.param(0.5, 0.5, lambda u: torch.sin(math.pi / 2 * u) ** 2, id="arcsine"),
        pytest.param(1.0, 3.0, lambda u: 1 - (1 - u) ** (1 / 3), id="minimum of three"),
        pytest.param(2.5, 1.0, lambda u: u**0.4, id="power"),
        pytest.param(2.0, 1.0, lambda u: u.sqrt(), id="triangle"),
    ],
)
def test_quantiles_of_beta_with_a_closed_form(alpha, beta, quantile):
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    close(beta_quantile(u, alpha, beta), quantile(u), 1e-11)


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.6), (0.3, 1.7), (4.0, 0.8)])
def test_beta_quantiles_are_mirrored_and_follow_the_density(alpha, beta):
    u = torch.linspace(0, 1, 41, dtype=torch.float64)
    close(beta_quantile(u, alpha, beta), 1 - beta_quantile(1 - u, beta, alpha), 1e-11)
    x, h = beta_quantile(u[5:-5], alpha, beta), 1e-6
    slope = (beta_quantile(u[5:-5] + h, alpha, beta) - beta_quantile(u[5:-5] - h, alpha, beta)) / (2 * h)
    density = x ** (alpha - 1) * (1 - x) ** (beta - 1) * math.gamma(alpha + beta) / math.gamma(alpha) / math.gamma(beta)
    close(slope * density, torch.ones_like(x), 1e-6)


def test_beta_levels_are_quantiles_of_sigma_as_in_diffusers():
    t = Beta(over="sigma", sigma_min=0.03)(EDM(), 7)
    q = beta_quantile(torch.linspace(1, 0, 7, dtype=torch.float64), 0.6, 0.6)
    close(t[:-1], 0.03 + q * (80 - 0.03), 1e-11)


@pytest.mark.parametrize("model", LEVELS)
def test_align_your_steps_keeps_its_table_and_interpolates_its_logarithm(model):
    path, table = EDM(700.0), LEVELS[model]
    close(AlignYourSteps(model)(path, 10), [*table, 0.0], 1e-11)
    t = AlignYourSteps(model)(path, 19)
    close(t[:-1:2], table, 1e-11)
    close(t[1:-1:2], np.sqrt(np.array(table[:-1]) * np.array(table[1:])), 1e-11)


@pytest.mark.parametrize("model", TIMESTEPS)
def test_align_your_steps_levels_are_its_indices_on_the_table_of_stable_diffusion(model):
    """The published levels are those of the published indices to within an index or two (a wider gap at SDXL's 587)."""
    given = torch.tensor(TIMESTEPS[model], dtype=torch.float64)
    assert (AlignYourSteps(model)(SD, 10)[:-1] - given).abs().max() < 3
    assert Explicit((*TIMESTEPS[model], -1.0))(SD, 10)[0] == 999


# --- flow shifts -----------------------------------------------------------------------------------------------


def test_dynamic_shift_is_exponential_in_a_mu_linear_in_tokens():
    assert DynamicShifted(256).mu == 0.5
    assert DynamicShifted(4096).mu == pytest.approx(1.15)
    assert DynamicShifted(2176).mu == pytest.approx((0.5 + 1.15) / 2)
    t = torch.linspace(1, 0, 9, dtype=torch.float64)[1:-1]
    flux = math.e**1.15 / (math.e**1.15 + (1 / t - 1))
    close(DynamicShifted(4096)(RectifiedFlow(), 8)[1:-1], flux, 1e-12)


def test_a_shift_with_an_end_shifts_the_shortened_grid():
    t = torch.linspace(1, 0.2, 5, dtype=torch.float64)
    close(Shifted(3.0, 0.2)(RectifiedFlow(), 4), 3 * t / (1 + 2 * t))
    # Stable Diffusion 3 in diffusers: n points down to the shifted smallest time, then 0.
    low = 3 * 0.001 / 1.002
    t = torch.linspace(1, low, 4, dtype=torch.float64)
    close(ThenClean(Shifted(3.0, low))(RectifiedFlow(), 4), torch.cat([3 * t / (1 + 2 * t), at([0.0])]))


# --- indices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 50, 333, 999])
def test_dpm_spacings_are_diffusers_formulas(n):
    linspace = np.linspace(0, 999, n + 1).round()[::-1][:-1]
    assert Spaced("dpm_linspace")(DDPM(), n)[:-1].tolist() == linspace.tolist()
    ratio = 1000 // (n + 1)
    leading = (np.arange(0, n + 1) * ratio).round()[::-1][:-1]
    assert Spaced("dpm_leading")(DDPM(), n)[:-1].tolist() == leading.tolist()
    if n < 999:
        assert Spaced("dpm_leading", offset=1)(DDPM(), n)[:-1].tolist() == (leading + 1).tolist()


def test_a_process_may_stop_at_its_first_index():
    assert Spaced("trailing", end=0.0)(DDPM(10), 5).tolist() == [9, 7, 5, 3, 1, 0]
    with pytest.raises(ValueError, match="decrease"):
        Spaced("leading", end=0.0)(DDPM(10), 5)


def test_lcm_takes_every_few_of_its_teachers_steps():
    assert LCMSpaced()(SD, 4).tolist() == [999, 759, 499, 259, -1]
    assert LCMSpaced()(SD, 1).tolist() == [999, -1]
    assert LCMSpaced()(SD, 8)[:-1].tolist() == [999, 879, 759, 639, 499, 379, 259, 139]
    with pytest.raises(ValueError, match="origin"):
        LCMSpaced(4)(SD, 5)


# --- DPM-Solver-fast -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 9, 10, 11])
def test_fast_divides_equal_intervals_of_lambda_by_their_orders(n, order):
    path, end = VE(), None
    lam = path.log_snr(Fast(order, end=end)(path, n))
    orders = fast_orders(order, n)
    assert sum(orders) == n
    edges = np.cumsum([0, *orders])
    outer = lam[edges.tolist()]
    close(outer.diff(), ((lam[-1] - lam[0]) / len(orders)).expand(len(orders)), 1e-9)
    for k, left in zip(orders, edges, strict=False):
        close(lam[left : left + k + 1].diff(), ((lam[-1] - lam[0]) / len(orders) / k).expand(k), 1e-9)


def test_fast_of_first_order_is_log_snr():
    close(Fast(1, end=1e-3)(VP(), 7), LogSNR(end=1e-3)(VP(), 7))


# --- composition -----------------------------------------------------------------------------------------------


def test_sgmse_takes_its_last_step_over_the_end_of_training():
    t = ThenClean(Uniform(end=0.03))(OUVE(), 30)
    close(t[:-1], np.linspace(1, 0.03, 30), 1e-13)
    assert t[-2] - t[-1] == pytest.approx(0.03)


def test_matched_times_have_the_lambda_of_the_other_grid():
    other = LogSNR(start=0.99, end=0.01)
    t = Matched(RectifiedFlow(), Explicit((0.9, 0.5, 0.1)))(ResidualShift(), 2)
    close(ResidualShift().log_snr(t), RectifiedFlow().log_snr(at([0.9, 0.5, 0.1])), 1e-9)
    assert Matched(RectifiedFlow(), other)(VP(), 5)[-1] == 0


@pytest.mark.parametrize(
    ("grid", "path", "n"),
    [
        pytest.param(Polyexponential(), RectifiedFlow(), 4, id="infinite sigma_max"),
        pytest.param(Beta(over="sigma", sigma_min=100.0), EDM(), 4, id="sigma_min above sigma_max"),
        pytest.param(Beta(end=2.0), VP(), 4, id="end before the start"),
        pytest.param(Fast(4), VP(), 4, id="order beyond three"),
        pytest.param(Fast(), RectifiedFlow(), 4, id="infinite lambda"),
        pytest.param(Shifted(0.0), RectifiedFlow(), 4, id="shift of zero"),
        pytest.param(Shifted(3.0, 1.0), RectifiedFlow(), 4, id="shift that ends where it starts"),
        pytest.param(ThenClean(Uniform()), VP(), 4, id="clean twice"),
        pytest.param(Matched(EDM(1000.0), Karras()), VP(), 10, id="levels beyond the path"),
        pytest.param(AlignYourSteps("svd"), DDPM(100, 0.001, 0.002), 10, id="levels far beyond the path"),
        pytest.param(LCMSpaced(), VP(), 4, id="indices of a continuous path"),
    ],
)
def test_impossible_grids_are_refused_in_one_line(grid, path, n):
    with pytest.raises(ValueError) as refused:
        grid(path, n)
    assert str(refused.value)
    assert "\n" not in str(refused.value)
