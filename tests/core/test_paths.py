import math

import numpy as np
import pytest
import torch
from worlds import PATHS, coeffs, golden, golden_case, golden_ids, interior, normal, over, uniform

from fewstep.estimate import Estimate
from fewstep.grids import Spaced
from fewstep.paths import DDPM, VE, Path, RectifiedFlow, ResidualShift
from fewstep.prediction import X0, Eps
from fewstep.solvers import DDIM, UnitGainAncestral

ALL = pytest.mark.parametrize("path", over(PATHS))


# --- rates and velocities --------------------------------------------------------------------------------------


@ALL
def test_rates_are_the_derivative_of_the_schedule(path):
    t = interior(path, 200)
    for closed, auto in zip(path.rates(t), Path.rates(path, t), strict=True):
        torch.testing.assert_close(closed, auto, rtol=1e-10, atol=1e-12)
    # The default implementation itself, against central differences (1e-6 wide: no knot inside).
    h = 1e-6
    for rate, ahead, behind in zip(path.rates(t), path.schedule(t + h), path.schedule(t - h), strict=True):
        torch.testing.assert_close(rate, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)


@ALL
def test_rates_of_expanded_and_scalar_times(path):
    t = interior(path, 1)
    for one, many, scalar in zip(path.rates(t), path.rates(t.expand(5)), path.rates(t[0]), strict=True):
        assert torch.equal(many, one.expand(5))
        assert torch.equal(scalar, one[0])


@ALL
def test_velocity_is_the_time_derivative_of_the_sample(path):
    t, h = interior(path, 8, seed=1), 1e-6
    x0, eps, y = normal(8, 3), normal(8, 3, seed=1), normal(8, 3, seed=2)
    difference = (path.sample(x0, eps, t + h, y) - path.sample(x0, eps, t - h, y)) / (2 * h)
    torch.testing.assert_close(path.velocity(x0, eps, t, y), difference, rtol=1e-5, atol=1e-6)


def test_first_linear_piece_of_resshift_starts_at_clean_data():
    path = ResidualShift()
    t = torch.tensor([-1.0, -0.75, -0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(path.schedule(t)[2], path.kappa * path.q0 * (t + 1), rtol=0, atol=1e-16)
    assert path.rates(t[:1])[2].item() == path.kappa * path.q0


# --- log-SNR ---------------------------------------------------------------------------------------------------


@ALL
def test_time_of_log_snr_inverts_log_snr(path):
    t = interior(path, 100, seed=2)
    lam = path.log_snr(t)
    torch.testing.assert_close(path.time_of_log_snr(lam), t, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(Path.time_of_log_snr(path, lam), path.time_of_log_snr(lam), rtol=1e-10, atol=1e-10)


@ALL
def test_lambda_strictly_decreases(path):
    lam = path.log_snr(torch.linspace(path.t_min, path.t_max, 1001, dtype=torch.float64))
    assert (lam[:-1] > lam[1:]).all()


@ALL
def test_ends(path):
    ends = torch.tensor([path.t_min, path.t_max], dtype=torch.float64)
    a, b, s = path.schedule(ends)
    assert a[0] == 1
    assert b[0] == 0
    assert s[0] == (path.sigma_min if isinstance(path, VE) else 0)
    assert a[1] >= 0
    assert s[1] > 0
    lam = path.log_snr(ends)
    assert not lam.isnan().any()
    assert lam[0] == (-math.log(path.sigma_min) if isinstance(path, VE) else math.inf)


@pytest.mark.parametrize(
    ("key", "a", "s"),
    [
        ("vp", math.exp(-19.9 / 4 - 0.05), math.sqrt(1 - math.exp(-19.9 / 2 - 0.1))),
        ("cosine", math.cos(1.0026 / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2), None),
        ("ddpm", math.sqrt(np.prod(1 - np.linspace(1e-4, 0.02, 1000))), None),
        ("ddpm_scaled", math.sqrt(np.prod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)), None),
        ("edm", 1.0, 80.0),
        ("ve", 1.0, 50.0),
        ("rf", 0.0, 1.0),
        ("trig", 0.0, 1.0),
        ("resshift15", 1 - 0.9801, 2 * 0.99),
        ("resshift4", 1 - 0.9801, 2 * 0.99),
        ("resshift4_capped", 1 - 0.9801, 2 * 0.99),
        ("resshift1", 1 - 0.9801, 2 * 0.99),
    ],
)
def test_noisy_end_is_the_published_one(key, a, s):
    path = PATHS[key]
    ours = path.schedule(torch.tensor(path.t_max, dtype=torch.float64))
    assert ours[0].item() == pytest.approx(a, rel=1e-11, abs=1e-16)
    assert ours[2].item() == pytest.approx(math.sqrt(1 - a * a) if s is None else s, rel=1e-12)


def test_ddpm_is_the_cumulative_product_at_its_indices():
    path = DDPM(steps=50)
    a = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 50)))
    torch.testing.assert_close(path.schedule(torch.arange(50).double())[0], torch.tensor(a), rtol=1e-13, atol=0)


@ALL
def test_nan_times_give_nan_and_leave_their_neighbours_alone(path):
    inside = interior(path, 1)
    t = torch.cat([torch.full((1,), math.nan, dtype=torch.float64), inside])
    (a, _, s), lam = path.schedule(t), path.log_snr(t)
    assert s[0].isnan()
    assert lam[0].isnan()
    if a[1] != 1:  # where a is not the constant 1
        assert a[0].isnan()
    for mixed, alone in zip(
        (*path.schedule(t), *path.rates(t)), (*path.schedule(inside), *path.rates(inside)), strict=True
    ):
        assert torch.equal(mixed[1:], alone)


def test_nan_times_give_nan_anchor_weights():
    assert all(v.isnan() for v in ResidualShift().schedule(torch.tensor(math.nan, dtype=torch.float64)))


# --- samples ---------------------------------------------------------------------------------------------------


@ALL
def test_samples_have_the_marginals_of_the_path(path):
    """x0 ~ N(mu, sd^2): x_t ~ N(a mu + b y, a^2 sd^2 + s^2), at two times interleaved over the batch."""
    n, mu, sd, y = 100_000, 0.7, 0.5, -1.3
    times = interior(path, 2, seed=5)
    x0 = mu + sd * normal(2 * n, 1)
    x = path.sample(x0, normal(2 * n, 1, seed=1), times.repeat(n), torch.full_like(x0, y))
    a, b, s = path.schedule(times)
    mean, var = a * mu + b * y, a**2 * sd**2 + s**2
    for i in range(2):
        draws = x[i::2, 0]
        assert abs(draws.mean() - mean[i]) < 4 * (var[i] / n).sqrt()
        assert abs(draws.var() - var[i]) < 4 * var[i] * math.sqrt(2 / n)


@ALL
def test_sampling_starts_at_the_noisy_end_with_the_anchor_in_place_of_the_data(path):
    eps, y = normal(4, 3), normal(4, 3, seed=1)
    end = torch.full((4,), path.t_max, dtype=torch.float64)
    torch.testing.assert_close(path.start(eps, y), path.sample(y, eps, end, y), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(path.start(eps), path.sample(torch.zeros_like(eps), eps, end), rtol=0, atol=0)
    t = (path.t_min + path.t_max) / 2
    inside = torch.full_like(end, t)
    torch.testing.assert_close(path.start(eps, y, t), path.sample(y, eps, inside, y), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(path.start(eps, None, t), path.sample(0 * eps, eps, inside), rtol=1e-14, atol=1e-14)


@ALL
def test_anchor_weight_is_zero_unless_the_path_is_anchored(path):
    b = path.schedule(interior(path, 50))[1]
    assert (b > 0).all() if path.anchored else (b == 0).all()


def test_coeffs_are_computed_in_double_precision_whatever_the_state():
    t = torch.tensor([1e-9], dtype=torch.float64)
    c = PATHS["vp"].coeffs(t, torch.zeros(1, 2, dtype=torch.float32))
    assert c.s.dtype == torch.float32
    assert c.s.shape == (1, 1)
    # s = sqrt(B0 t) to first order: lost if 1 - a^2 were formed in float32.
    assert c.s.item() == pytest.approx(math.sqrt(0.1 * 1e-9), rel=1e-6)


# --- golden vectors of ResShift --------------------------------------------------------------------------------

RESSHIFT = {
    "resshift_realsr15": (ResidualShift(), Spaced("floor")),
    "resshift_journal4": (ResidualShift(steps=4, min_noise=0.2), Spaced("floor")),
    "resshift_respaced15to4": (ResidualShift(), Spaced("floor")),
    "resshift_master4": (ResidualShift(steps=4, min_noise=0.2, q0_cap=0.001**0.5), Spaced("floor")),
}


def resshift(stem):
    """(path, ascending times of the process, key -> float64 tensor, has_key)."""
    arrays, _ = golden("restoration_dev")
    path, spacing = RESSHIFT[stem]
    times = spacing(path, len(arrays[f"{stem}/sqrt_etas"])).flip(0)[1:]
    return path, times, lambda key: torch.tensor(arrays[f"{stem}/{key}"]).double()


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stem", RESSHIFT)
def test_resshift_levels(stem):
    path, t, theirs = resshift(stem)
    a, b, s = path.schedule(t)
    close(s / path.kappa, theirs("sqrt_etas"))
    if stem != "resshift_master4":
        close(b, theirs("etas"))
        close(1 - a, theirs("etas"))
        close(path.schedule(torch.cat([t.new_tensor([-1.0]), t[:-1]]))[1], theirs("etas_prev"))
        assert torch.equal(t, theirs("timestep_map"))


WITH_EXAMPLES = pytest.mark.parametrize("stem", [s for s in RESSHIFT if s != "resshift_master4"])


@WITH_EXAMPLES
def test_resshift_posterior_is_the_unit_gain_step(stem):
    path, t, theirs = resshift(stem)
    rows = UnitGainAncestral().plan(path, torch.cat([t.flip(0), t.new_tensor([-1.0])]))[::-1]
    close(double([r.x[0] for r in rows]), theirs("posterior_mean_coef1"))
    close(double([r.e[0] for r in rows]), theirs("posterior_mean_coef2"))
    close(double([r.noise**2 for r in rows]), theirs("posterior_variance"))
    # The anchor drops out of the mean: b_s = c b_t.
    x_t, x0 = theirs("ex_xt"), theirs("ex_x0")
    mean = torch.stack([r.x[0] * x + r.e[0] * z for r, x, z in zip(rows, x_t, x0, strict=True)])
    close(mean, theirs("ex_post_mean"))


@WITH_EXAMPLES
def test_resshift_forward_process_prior_and_conversions(stem):
    path, t, theirs = resshift(stem)
    x0, y, eps, x_t = (theirs(f"ex_{k}") for k in ("x0", "y", "eps", "xt"))
    close(path.sample(x0, eps, t, y), x_t)
    c = path.coeffs(t, x_t)
    k = X0().affine(c)
    close(k.eps_x * x_t + k.eps_out * x0 + k.eps_y * y, theirs("ex_eps_from_x0"))
    k = Eps().affine(c)
    close(k.x0_x * x_t + k.x0_out * eps + k.x0_y * y, theirs("ex_x0_from_eps"))
    if stem != "resshift_respaced15to4":  # a respaced process starts at its own last level
        close(path.start(eps, y), theirs("ex_prior"))


@pytest.mark.parametrize("stem", ["resshift_realsr15", "resshift_respaced15to4"])
def test_sinsr_deterministic_step_is_ddim_with_the_anchor_shifted(stem):
    """x_s = k x0 + m x_t + j y with k = w, m = c, j = b_s - c b_t."""
    path, t, theirs = resshift(stem)
    rows = DDIM().plan(path, torch.cat([t.flip(0), t.new_tensor([-1.0])]))[::-1]
    k, m = double([r.e[0] for r in rows]), double([r.x[0] for r in rows])
    b, b_next = path.schedule(t)[1], path.schedule(torch.cat([t.new_tensor([-1.0]), t[:-1]]))[1]
    j = b_next - m * b
    close(k, theirs("ddim_k"))
    close(m, theirs("ddim_m"))
    close(j, theirs("ddim_j"))
    x0, y, x_t = (theirs(f"ex_{key}") for key in ("x0", "y", "xt"))
    step = DDIM().step(
        path, x_t - b.reshape(-1, 1, 1, 1) * y, Estimate(x0, x0), t, torch.cat([t.new_tensor([-1.0]), t[:-1]])
    )
    close(step + b_next.reshape(-1, 1, 1, 1) * y, theirs("ex_ddim_prev"))


def _resshift_of(params):
    return ResidualShift(
        steps=params["num_diffusion_timesteps"],
        kappa=params["kappa"],
        power=params["kwargs"]["power"],
        end=params["etas_end"],
        min_noise=params["min_noise_level"],
    )


@pytest.mark.parametrize("case_id", golden_ids("path_table"))
def test_golden_path_tables(case_id):
    case, array = golden_case(case_id)
    if case["path"] != "resshift":
        pytest.skip(f"path {case['path']} is not implemented")
    t, a, b, s = array("out").T
    for ours, theirs in zip(_resshift_of(case["params"]).schedule(t - 1), (a, b, s), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=case["rtol"], atol=case["atol"])


# --- coefficients beside states --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 1, 2, 2)])
def test_coeffs_broadcast_per_sample_over_states_of_any_rank(shape):
    t = uniform(4)
    c = RectifiedFlow().coeffs(t, torch.zeros(shape, dtype=torch.float64))
    x0, eps = normal(*shape), normal(*shape, seed=1)
    x = c.a * x0 + c.s * eps
    for i in range(4):
        assert torch.equal(x[i], (1 - t[i]) * x0[i] + t[i] * eps[i])
    assert all(
        torch.equal(v.flatten(), u)
        for v, u in zip(coeffs(RectifiedFlow(), t)[:3], RectifiedFlow().schedule(t), strict=True)
    )
