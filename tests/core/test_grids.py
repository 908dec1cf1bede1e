import math

import numpy as np
import pytest
import torch
from worlds import PATHS

from fewstep.grids import Explicit, Karras, LogSNR, Power, Shifted, Spaced, Uniform
from fewstep.paths import DDPM, EDM, VE, VP, Cosine, RectifiedFlow, ResidualShift, Trig

INDEXED = {k: PATHS[k] for k in ("ddpm", "ddpm_scaled", "resshift15", "resshift4", "resshift1")}

# Grid, path and clean end of every grid on every path that it is for.
CASES = {f"uniform-{k}": (Uniform(), p, p.t_min) for k, p in PATHS.items()}
CASES |= {
    "uniform-end": (Uniform(end=1e-3), VP(), 1e-3),
    "power": (Power(), VP(), 0.0),
    "power7": (Power(7.0, end=0.002), EDM(), 0.002),
    "logsnr-vp": (LogSNR(end=1e-3), VP(), 0.0),
    "logsnr-cosine": (LogSNR(end=1e-3), Cosine(), 0.0),
    "logsnr-rf": (LogSNR(start=0.999, end=1e-3), RectifiedFlow(), 0.0),
    "logsnr-trig": (LogSNR(start=1.57, end=1e-3), Trig(), 0.0),
    "logsnr-edm": (LogSNR(end=0.002), EDM(), 0.0),
    "logsnr-ve": (LogSNR(), VE(), 0.0),
    "logsnr-ddpm": (LogSNR(end=0.0), DDPM(), -1.0),
    "logsnr-resshift": (LogSNR(end=0.0), ResidualShift(), -1.0),
    "karras-edm": (Karras(), EDM(), 0.0),
    "karras-vp": (Karras(), VP(), 0.0),
    "karras-cosine": (Karras(sigma_min=0.02), Cosine(), 0.0),
    "karras-ddpm": (Karras(sigma_min=0.02), DDPM(), -1.0),
    "karras-ve": (Karras(sigma_min=0.02), VE(), 0.0),
    "karras-resshift": (Karras(sigma_min=0.05), ResidualShift(), -1.0),
    "shifted": (Shifted(), RectifiedFlow(), 0.0),
    "shifted-vp": (Shifted(0.5), VP(), 0.0),
}
CASES |= {f"spaced-{s}-{k}": (Spaced(s), p, -1.0) for s in ("include_end", "trailing") for k, p in INDEXED.items()}
EVERY = pytest.mark.parametrize(("grid", "path", "end"), [pytest.param(*v, id=k) for k, v in CASES.items()])


def linspace(hi, lo, n):
    return torch.tensor(np.linspace(hi, lo, n))


def close(ours, theirs, tol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)


@EVERY
def test_times_strictly_decrease_between_exact_ends(grid, path, end):
    for n in (1, 2, 3, 4, 7, 15):
        if isinstance(grid, Spaced) and n > path.t_max + 1:
            continue
        t = grid(path, n)
        assert t.dtype == torch.float64
        assert t.shape == (n + 1,)
        assert (t[:-1] > t[1:]).all()
        assert t[0].item() == path.t_max
        assert t[-1].item() == end


@EVERY
def test_grids_need_a_step(grid, path, end):
    with pytest.raises(ValueError, match="step"):
        grid(path, 0)


def test_uniform_is_linear_in_time():
    close(Uniform()(EDM(), 4), linspace(80, 0, 5))
    close(Uniform(end=1e-3)(VP(), 7), linspace(1, 1e-3, 8))
    close(Uniform()(ResidualShift(), 15), linspace(14, -1, 16))
    close(Uniform(start=0.85)(RectifiedFlow(), 5), linspace(0.85, 0, 6))


def test_power_two_is_the_quadratic_grid():
    close(Power(2.0, end=1e-3)(VP(), 9), linspace(1, 1e-3**0.5, 10) ** 2)


@pytest.mark.parametrize(
    "key", ["logsnr-vp", "logsnr-cosine", "logsnr-rf", "logsnr-trig", "logsnr-edm", "logsnr-ddpm", "logsnr-resshift"]
)
def test_log_snr_steps_are_equal_in_lambda(key):
    grid, path, _ = CASES[key]
    n = 12
    t = grid(path, n)
    inner = t[(grid.start is not None) : -1]  # the outer steps reach the infinite ends
    assert inner[-1].item() == grid.end
    assert inner[0].item() == (path.t_max if grid.start is None else grid.start)
    h = path.log_snr(inner).diff()
    close(h, h.mean().expand(len(h)), tol=1e-9)


def test_log_snr_on_a_path_of_finite_ends_needs_no_outer_step():
    t = LogSNR()(VE(), 10)
    close(VE().log_snr(t).diff(), torch.full((10,), math.log(50 / 0.01) / 10, dtype=torch.float64), tol=1e-10)


@pytest.mark.parametrize("n", [2, 5, 18])
def test_karras_is_the_formula_of_edm(n):
    i = np.arange(n)
    sigma = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    close(Karras()(EDM(), n), torch.tensor(np.append(sigma, 0.0)), tol=1e-11)


def test_karras_levels_are_those_of_edm_on_any_path():
    levels = Karras(sigma_max=40.0)(EDM(sigma_max=40.0), 8)[:-1]
    for path in (VP(), RectifiedFlow(), Trig(), DDPM()):
        t = Karras(sigma_max=40.0)(path, 8)
        close((-path.log_snr(t[:-1])).exp(), levels, tol=1e-8)
        assert t[-1].item() == path.t_min


def test_power_seven_is_karras_without_its_zero():
    close(Power(7.0, end=0.002)(EDM(), 9), Karras()(EDM(), 10)[:-1], tol=1e-11)


def test_shift_is_the_formula_of_stable_diffusion_3():
    t = linspace(1, 0, 9)
    close(Shifted(3.0)(RectifiedFlow(), 8), 3 * t / (1 + 2 * t))
    close(Shifted(1.0)(RectifiedFlow(), 8), t)
    # On a rectified flow the shift multiplies rho by k, that is, it moves lambda by -log k.
    inside = slice(1, -1)
    moved = RectifiedFlow().log_snr(Shifted(3.0)(RectifiedFlow(), 8)[inside]) - RectifiedFlow().log_snr(t[inside])
    close(moved, torch.full((7,), -math.log(3), dtype=torch.float64))


def test_official_respacing_of_resshift_keeps_0_3_7_11():
    assert Spaced("floor")(ResidualShift(), 4).tolist() == [11, 7, 3, 0, -1]
    assert Spaced("floor")(ResidualShift(), 15).tolist() == [*range(14, -1, -1), -1]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10, 50, 333, 1000])
def test_spacings_are_the_published_index_formulas(n):
    total, path = 1000, DDPM()

    def ascending(spacing, **kw):
        return Spaced(spacing, **kw)(path, n).flip(0)[1:].tolist()

    if n > 1:
        assert ascending("include_end") == np.linspace(0, total - 1, n).round().tolist()
    else:
        assert ascending("include_end") == [999]
    assert ascending("trailing")[::-1] == (np.round(np.arange(total, 0, -total / n))[:n] - 1).tolist()
    assert ascending("leading") == (np.arange(n) * (total // n)).tolist()
    if n < total:
        assert ascending("leading", offset=1) == (np.arange(n) * (total // n) + 1).tolist()
    assert ascending("floor") == [total * i // n for i in range(n)]


def test_explicit_times_are_returned_as_given():
    assert Explicit((1.0, 0.3, 0.0))(VP(), 2).tolist() == [1.0, 0.3, 0.0]


@pytest.mark.parametrize(
    ("grid", "path", "n"),
    [
        pytest.param(Power(), DDPM(), 4, id="power below zero"),
        pytest.param(LogSNR(), RectifiedFlow(), 4, id="infinite lambda"),
        pytest.param(LogSNR(end=1e-3), RectifiedFlow(), 4, id="infinite lambda at the start"),
        pytest.param(LogSNR(start=0.9), VP(), 4, id="infinite lambda at the end"),
        pytest.param(Karras(), RectifiedFlow(), 4, id="infinite sigma_max"),
        pytest.param(Karras(sigma_min=90.0), EDM(), 4, id="sigma_min above sigma_max"),
        pytest.param(Karras(), VE(), 4, id="sigma_min below the path's own"),
        pytest.param(Shifted(), EDM(), 4, id="shift of sigmas"),
        pytest.param(Shifted(), Cosine(), 4, id="shift of other times"),
        pytest.param(Spaced(), VP(), 4, id="indices of a continuous path"),
        pytest.param(Spaced(), ResidualShift(), 16, id="more steps than indices"),
        pytest.param(Spaced("leading", offset=1), DDPM(), 1000, id="offset beyond the last index"),
        pytest.param(Explicit((1.0, 0.5)), VP(), 2, id="wrong number of times"),
        pytest.param(Explicit((1.0, 1.0, 0.0)), VP(), 2, id="repeated times"),
        pytest.param(Explicit(()), VP(), 1, id="no times"),
        pytest.param(Explicit((1.0, math.nan)), VP(), 1, id="not a number"),
        pytest.param(Uniform(end=2.0), VP(), 4, id="end before the start"),
        pytest.param(Uniform(start=1.2), RectifiedFlow(), 4, id="start beyond the path"),
        pytest.param(Uniform(start=0.1, end=0.2), RectifiedFlow(), 4, id="start below the end"),
        pytest.param(Uniform(start=0.0), RectifiedFlow(), 4, id="start at the end"),
        pytest.param(LogSNR(start=0.1, end=0.9), VP(), 4, id="start below end"),
    ],
)
def test_impossible_grids_are_refused_in_one_line(grid, path, n):
    with pytest.raises(ValueError) as refused:
        grid(path, n)
    assert str(refused.value)
    assert "\n" not in str(refused.value)
