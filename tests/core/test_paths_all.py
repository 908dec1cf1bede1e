"""Every path: rates, lambda and its inverse, ends, NaN; then the equations that are particular to one."""

import json
import math

import pytest
import torch
from golden_cases import Case, error
from worlds import GOLDEN, golden, interior, normal, over, uniform

from fewstep.artifacts import build, describe
from fewstep.denoiser import Denoiser
from fewstep.estimate import Estimate
from fewstep.grids import LogSNR, Uniform
from fewstep.paths import DDPM, EDM, VE, VP, Cosine, Path, RectifiedFlow, ResidualShift, Trig
from fewstep.paths.anchored_flow import AnchoredFlow
from fewstep.paths.banded import Banding, FrequencyNet, SpectralShortestPath, frequencies, pixels
from fewstep.paths.betas import CosineBetas, GivenBetas, LinearBetas, ScaledLinearBetas, ZeroTerminalSNR
from fewstep.paths.edm import PriorEDM
from fewstep.paths.interpolant import Arc, Brownian, Interpolant, OneSided, Parabola, SineSquared, Straight
from fewstep.paths.mean_reverting import MeanReverting
from fewstep.paths.ouve import OUVE
from fewstep.paths.piecewise import interpolate, invert
from fewstep.paths.polynomial import Polynomial
from fewstep.paths.residual_denoising import ResidualDenoising
from fewstep.paths.sbve import SBVE
from fewstep.paths.shaped import Diagonal, Spectral, Whitened, radius
from fewstep.paths.shortest_path import ShortestPath
from fewstep.paths.sub_vp import SubVP
from fewstep.paths.tabulated import DiscreteVP, IndexedVP
from fewstep.prediction import X0, Eps
from fewstep.residual_noise import ResidualNoise
from fewstep.sampling import sample
from fewstep.solvers import DDIM, Ancestral, DPMpp2M, Heun
from fewstep.solvers.banded import Banded
from fewstep.toy import gaussian

MONOTONE = {
    "vp": VP(),
    "vp_constant": VP(2.0, 2.0),
    "cosine": Cosine(),
    "sub_vp": SubVP(),
    "ddpm": DDPM(steps=200),
    "indexed_cosine": IndexedVP(CosineBetas(100)),
    "indexed_zero_snr": IndexedVP(ZeroTerminalSNR(ScaledLinearBetas(100))),
    "indexed_given": IndexedVP(GivenBetas((0.1, 0.2, 0.4, 0.3))),
    "discrete_linear": DiscreteVP(LinearBetas(200)),
    "discrete_cosine": DiscreteVP(CosineBetas(1000)),
    "discrete_given": DiscreteVP(GivenBetas((0.3, 0.2, 0.4)), lam_min=None),
    "edm": EDM(),
    "ve": VE(),
    "rf": RectifiedFlow(),
    "rf_floor": RectifiedFlow(1e-3),
    "polynomial": Polynomial(2.0),
    "polynomial_root": Polynomial(0.7),
    "trig": Trig(),
    "one_sided": OneSided(Arc()),
    "shortest": ShortestPath(0.05),
    "shortest_wide": ShortestPath(20.0),
    "shortest_one": ShortestPath(1.0),
    "ouve": OUVE(),
    "sbve": SBVE(),
    "mean_reverting": MeanReverting(),
    "mean_reverting_linear": MeanReverting(20, 30 / 255, 0.01, "linear"),
    "mean_reverting_constant": MeanReverting(10, 0.5, 0.02, "constant"),
    "resshift": ResidualShift(),
    "rddm": ResidualDenoising(),
    "rddm_average": ResidualDenoising(20, 1.0, "average", "average"),
    "rddm_swapped": ResidualDenoising(20, 1.0, "increased", "decreased"),
    "anchored_flow": AnchoredFlow(),
    "prior_edm": PriorEDM(),
    "brownian": Interpolant(Straight(), Brownian(0.5)),
    "brownian_arc": Interpolant(Arc(), Brownian()),
    "parabola": Interpolant(Straight(), Parabola()),
}
# lambda turns round.
PATHS = MONOTONE | {"sine_squared": Interpolant(Straight(), SineSquared(0.5))}
BRIDGES = {k: PATHS[k] for k in ("sbve", "brownian", "brownian_arc", "parabola", "sine_squared")}
NOISY_CLEAN_END = {"ve", "rf_floor", "discrete_given"}
EVERY = pytest.mark.parametrize("path", over(PATHS))
EVERY_MONOTONE = pytest.mark.parametrize("path", over(MONOTONE))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(ours, theirs, tol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)


def at(t):
    return torch.tensor(t, dtype=torch.float64)


# --- all paths -------------------------------------------------------------------------------------------------


@EVERY
def test_rates_are_the_derivatives_of_the_schedule(path):
    t, h = interior(path, 100), 1e-6 * (path.t_max - path.t_min)
    ahead, behind = path.schedule(t + h), path.schedule(t - h)
    for rate, auto, high, low in zip(path.rates(t), Path.rates(path, t), ahead, behind, strict=True):
        torch.testing.assert_close(rate, auto, rtol=1e-9, atol=1e-12)
        assert ((rate - (high - low) / (2 * h)).abs() <= 1e-6 * (1 + rate.abs().max())).all()


@EVERY_MONOTONE
def test_lambda_strictly_decreases_and_has_an_inverse(path):
    t = torch.linspace(path.t_min, path.t_max, 2001, dtype=torch.float64)
    lam = path.log_snr(t)
    assert not lam.isnan().any()
    assert (lam[:-1] > lam[1:]).all()
    inside = t[(lam.abs() < 15)]
    scale = path.t_max - path.t_min
    assert (path.time_of_log_snr(path.log_snr(inside)) - inside).abs().max() < 1e-10 * scale
    some = inside[::50]
    assert (Path.time_of_log_snr(path, path.log_snr(some)) - some).abs().max() < 1e-10 * scale


@EVERY_MONOTONE
def test_the_inverse_of_infinite_lambda_is_the_singular_end(path):
    ends = at([path.t_min, path.t_max])
    lam = path.log_snr(ends)
    infinite = lam.isinf()
    close(path.time_of_log_snr(lam)[infinite], ends[infinite], 1e-14)


@pytest.mark.parametrize(("name", "path"), PATHS.items(), ids=PATHS)
def test_ends(name, path):
    (a, b, s), lam = path.schedule(at([path.t_min, path.t_max])), path.log_snr(at([path.t_min, path.t_max]))
    if name not in NOISY_CLEAN_END:
        assert (a[0].item(), s[0].item(), lam[0].item()) == (1.0, 0.0, math.inf)
        assert math.copysign(1, s[0].item()) == 1  # not -0, whose reciprocal has the wrong sign
    assert b[0] == 0
    assert (a >= 0).all()
    assert (s >= 0).all()
    assert math.copysign(1, a[1].item()) == 1
    if name in BRIDGES:
        assert (a[1].item(), b[1].item(), s[1].item()) == (0.0, 1.0, 0.0)
    else:
        assert s[1] > 0
        assert a[1] > 0 or lam[1] == -math.inf


@EVERY
def test_nan_times_give_nan_everywhere_and_leave_their_neighbours_alone(path):
    inside = interior(path, 1)
    t = torch.cat([at([math.nan]), inside])
    a, b, s = path.schedule(t)
    assert a[0].isnan()
    assert s[0].isnan()
    assert b[0].isnan() or not path.anchored
    assert path.log_snr(t)[0].isnan()
    for mixed, alone in zip(
        (*path.schedule(t), *path.rates(t)), (*path.schedule(inside), *path.rates(inside)), strict=True
    ):
        assert torch.equal(mixed[1:], alone)


@EVERY_MONOTONE
def test_nan_lambda_has_no_time(path):
    assert path.time_of_log_snr(at(math.nan)).isnan()
    assert Path.time_of_log_snr(path, at(math.nan)).isnan()


@EVERY
def test_elementwise_in_times_of_any_shape(path):
    t = interior(path, 6)
    for flat, square in zip(path.schedule(t), path.schedule(t.reshape(2, 3)), strict=True):
        assert torch.equal(flat, square.flatten())
    for flat, square in zip(path.rates(t), path.rates(t.reshape(2, 3)), strict=True):
        assert torch.equal(flat, square.flatten())


@EVERY
def test_samples_have_the_marginals_of_the_path(path):
    n, mu, sd, y, t = 50_000, 0.7, 0.5, -1.3, interior(path, 1, seed=3)
    x = path.sample(mu + sd * normal(n, 1), normal(n, 1, seed=1), t.expand(n), torch.full((n, 1), y).double())
    (a,), (b,), (s,) = path.schedule(t)
    var = a**2 * sd**2 + s**2
    assert abs(x.mean() - (a * mu + b * y)) < 4 * (var / n).sqrt()
    assert abs(x.var() - var) < 4 * var * math.sqrt(2 / n)


@EVERY
def test_four_steps_of_ddim_end_to_end_are_finite_and_exact_for_a_known_x0(path):
    """With the true x0 as estimate every step lands on a x0 + b y + s eps with the same eps (0 where a bridge
    starts)."""
    y = normal(5, 3, seed=1) if path.anchored else None
    x0, eps = normal(5, 3, seed=2), normal(5, 3, seed=3)
    grid = Uniform()(path, 4)
    start = path.sample(x0, eps, grid[:1].expand(5), y)
    bridge = path.schedule(grid[0])[2] == 0
    states = []

    def known(x, t):
        states.append(x)
        return Estimate(x0, eps)

    out = sample(known, start, path, DDIM(), grid, y)
    for t, x in zip(grid, [*states, out], strict=True):
        close(x, path.sample(x0, eps * (0.0 if bridge else 1.0), t.expand(5), y), 1e-9)


# --- bridges ---------------------------------------------------------------------------------------------------


def bridge_world(path, y, mean=0.3, std=0.7):
    """The Gaussian world of a bridge; at its noise-free start the state says nothing about x0."""
    world = gaussian(path, mean, std, dim=y.shape[1], y=y)

    def denoise(x, t):
        if path.schedule(at(t))[2] == 0:
            return Estimate(torch.full_like(x, mean), torch.zeros_like(x))
        return world(x, t)

    return denoise


BRIDGE_SOLVERS = [
    pytest.param(path, solver, id=f"{name}-{type(solver).__name__}")
    for name, path in BRIDGES.items()
    for solver in (DDIM(), DPMpp2M(), Heun())
    if name in MONOTONE or solver == DDIM()  # the others look at lambda
]


@pytest.mark.parametrize(("path", "solver"), BRIDGE_SOLVERS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_bridges_are_sampled_from_the_anchor_itself(path, solver, n):
    y = normal(6, 2, seed=1)
    x = path.start(normal(6, 2), y)
    assert torch.equal(x, y)
    world = bridge_world(path, y)
    out = sample(world, x, path, solver, Uniform()(path, n), y)
    assert out.isfinite().all()
    if n == 1:  # a predictive model: E[x0 | x = y]
        close(out, torch.full_like(out, 0.3))


@pytest.mark.parametrize("path", over(BRIDGES))
def test_the_ode_of_a_bridge_from_its_anchor_is_the_mean_trajectory(path):
    """From z = 0 the flow of a Gaussian x0 stays at its mean, x = a mu + b y: DDIM follows it exactly."""
    y = normal(6, 2, seed=1)
    out = sample(bridge_world(path, y), y, path, DDIM(), Uniform(end=0.3)(path, 7), y)
    a, b, _ = path.schedule(at(0.3))
    close(out, a * 0.3 + b * y, 1e-12)


def test_a_step_out_of_clean_data_is_still_refused():
    for path in (SBVE(), RectifiedFlow()):
        with pytest.raises(ValueError, match="DDIM"):
            DDIM().plan(path, at([0.0, -0.5]))


def test_sb_ode_step_has_the_three_published_weights():
    """sp-uhh/sgmse: w1 = s_q sbar_q/(s_p sbar_p), w2 and w3 as in the audio literature (arXiv:2409.10753)."""
    path, t = SBVE(), at([0.7, 0.4])
    s2 = path.s2(t)
    total = path.s2(at(1.0))
    sp, sq = s2.sqrt()
    bp, bq = (total - s2).sqrt()
    (row,) = DDIM().plan(path, t)
    b = path.schedule(t)[1]
    assert row.x[0] == pytest.approx((sq * bq / (sp * bp)).item(), rel=1e-12)
    assert row.e[0] == pytest.approx(((bq**2 - bp * sq * bq / sp) / total).item(), rel=1e-12)
    assert (b[1] - row.x[0] * b[0]).item() == pytest.approx(((sq**2 - sp * sq * bq / bp) / total).item(), rel=1e-12)


def test_sbve_has_the_values_of_its_paper():
    a, b, s = SBVE().schedule(at([0.25, 0.5, 0.75]))
    close(a, at([0.894, 0.722, 0.446]), 6e-4)
    close(s, at([0.338, 0.492, 0.546]), 6e-4)
    close(a + b, torch.ones(3).double(), 1e-15)


# --- SDEs behind paths -----------------------------------------------------------------------------------------


def test_ouve_solves_its_variance_equation():
    """(s^2)' = g^2 - 2 theta s^2 and a' = -theta a; check values of arXiv:2208.05830."""
    path, t = OUVE(), interior(OUVE(), 50)
    (a, _, s), (da, db, ds) = path.schedule(t), path.rates(t)
    close(2 * s * ds, path.diffusion(t) ** 2 - 2 * path.theta * s**2)
    close(da, -path.theta * a)
    close(db, -da)
    close(path.schedule(at([0.03, 0.5, 1.0]))[2], at([0.0188, 0.1217, 0.3890]), 5e-5)


@pytest.mark.parametrize("path", over({k: PATHS[k] for k in PATHS if k.startswith("mean_reverting")}))
def test_mean_reverting_kernels_compose_to_the_marginals(path):
    """x_i = y + (x_(i-1) - y) A + lam sqrt(1 - A^2) xi with A = exp(-theta_i dt), over all indices
    (arXiv:2301.11699)."""
    a, var = 1.0, 0.0
    for i in range(1, path.steps + 1):
        decay = math.exp(-path.theta(at(float(i))).item() * path.dt)
        a, var = a * decay, var * decay**2 + path.sigma_max**2 * (1 - decay**2)
        ours = path.schedule(at(float(i)))
        assert ours[0].item() == pytest.approx(a, rel=1e-11)
        assert ours[1].item() == pytest.approx(1 - a, rel=1e-9)
        assert ours[2].item() == pytest.approx(math.sqrt(var), rel=1e-11)
    assert a == pytest.approx(path.eps, rel=1e-11)


def test_mean_reverting_is_a_vp_path_around_the_anchor():
    path, t = MeanReverting(sigma_max=1.0), interior(MeanReverting(), 20)
    a, b, s = path.schedule(t)
    close(a**2 + s**2, torch.ones_like(t))
    close(a + b, torch.ones_like(t))


@pytest.mark.parametrize("stem", ["irsde_sr30", "irsde_derain10"])
def test_golden_irsde_schedule(stem):
    arrays, _ = golden("restoration_dev")
    read = lambda key: torch.tensor(arrays[f"{stem}/{key}"]).double()
    path, i = MeanReverting(100, int(stem[-2:]) / 255), torch.arange(101).double()
    close(path.theta(i), read("thetas"))
    close(path.sigma(i), read("sigmas"))
    close(path.schedule(i)[2], read("sigma_bars"))
    assert path.dt == pytest.approx(read("dt").item(), rel=1e-12)
    x = path.sample(
        read("ex_x0").expand(5, -1, -1, -1), read("ex_eps").expand(5, -1, -1, -1), read("ex_t"), read("ex_y")
    )
    close(x, read("ex_xt"))


@pytest.mark.parametrize(("stem", "scale"), [("rddm_T1000", 1.0), ("rddm_T1000_s001", 0.01)])
def test_golden_rddm_schedule_and_deterministic_sampler(stem, scale):
    """The official sampler with the true residual and noise: every state is the marginal, the last is x0."""
    arrays, _ = golden("restoration_dev")
    read = lambda key: torch.tensor(arrays[f"{stem}/{key}"]).double()
    path, t = ResidualDenoising(1000, scale), torch.arange(1000).double()
    _, b, s = path.schedule(t)
    close(b, read("alphas_cumsum"))
    close(s**2, read("betas2_cumsum"))
    x0, y, eps = read("ex_x0"), read("ex_y"), read("ex_eps")
    trajectory = read("ex_traj")
    times = read("times_5" if stem == "rddm_T1000" else "times_10")

    class Oracle(torch.nn.Module):
        def forward(self, x, t):
            return torch.cat([y - x0, eps], 1)

    out = sample(ResidualNoise(Oracle(), path).bind(), path.sample(x0, eps, times[:1], y), path, DDIM(), times, y)
    close(out, x0, 1e-11)
    states = [path.sample(x0, eps, v[None], y) for v in times]
    close(torch.stack(states), trajectory, 1e-10)


def test_rddm_moves_the_residual_and_the_noise():
    """With y = 0 it is a path a x0 + s eps; and x0 = y has no residual, only noise."""
    rddm = ResidualDenoising(1000, 1.0)
    t, x0, eps = interior(rddm, 4), normal(4, 2), normal(4, 2, seed=1)
    a, b, s = (v[:, None] for v in rddm.schedule(t))
    close(a + b, torch.ones_like(a))
    close(rddm.sample(x0, eps, t, torch.zeros_like(x0)), a * x0 + s * eps)
    close(rddm.sample(x0, eps, t, x0), x0 + s * eps)


# --- discrete tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "betas", [LinearBetas(50), ScaledLinearBetas(50), CosineBetas(50), ZeroTerminalSNR(LinearBetas(50))]
)
def test_indexed_paths_are_the_cumulative_product_at_their_indices(betas):
    a, _, s = IndexedVP(betas).schedule(torch.arange(50).double())
    bar = (1 - betas()).cumprod(0)
    close(a, bar.sqrt(), 1e-13)
    close(s**2, 1 - bar, 1e-12)


def test_discrete_and_indexed_paths_meet_at_the_knots():
    betas, i = LinearBetas(200, 1e-3, 0.04), torch.arange(200).double()
    for ours, theirs in zip(DiscreteVP(betas).schedule((i + 1) / 200), IndexedVP(betas).schedule(i), strict=True):
        close(ours, theirs, 1e-13)


def test_cosine_betas_are_those_of_improved_ddpm():
    betas = CosineBetas(1000)()
    bar = (torch.cos((torch.arange(1001).double() / 1000 + 0.008) / 1.008 * math.pi / 2)) ** 2
    close((1 - betas)[:-1].cumprod(0), (bar[1:] / bar[0])[:-1], 1e-9)
    assert betas[-1] == 0.999


def test_noisy_knots_of_a_cosine_table_are_dropped_and_relabelled():
    betas = CosineBetas(1000)
    path = DiscreteVP(betas)
    kept = int((IndexedVP(betas).log_snr(torch.arange(1000).double()) >= -5.1).sum())
    assert kept == 996  # as DPM-Solver's code keeps
    close(path.schedule(at(1.0))[0], IndexedVP(betas).schedule(at(kept - 1.0))[0])
    close(path.schedule(at(500 / kept))[0], IndexedVP(betas).schedule(at(499.0))[0])


def test_discrete_path_is_extrapolated_below_its_first_knot():
    path = DiscreteVP(LinearBetas(1000))
    t = at([1e-3, 2e-3, 0.5e-3])
    first, second, below = path.schedule(t)[0].log()
    close(below, 1.5 * first - 0.5 * second, 1e-13)
    assert 0 < path.t_min < 1e-3


def test_zero_terminal_snr_keeps_the_first_level_and_empties_the_last():
    betas = ScaledLinearBetas()
    plain, rescaled = IndexedVP(betas), IndexedVP(ZeroTerminalSNR(betas))
    ends = at([0.0, 999.0])
    close(rescaled.schedule(ends[:1])[0], plain.schedule(ends[:1])[0], 1e-13)
    assert rescaled.schedule(ends)[0][1] == 0
    # sqrt(abar) is an affine image of the old one.
    i = torch.arange(1000).double()
    old, new = plain.schedule(i)[0], rescaled.schedule(i)[0]
    close((new - new[0]) / (new[-1] - new[0]), (old - old[0]) / (old[-1] - old[0]), 1e-11)
    lam = rescaled.log_snr(at([998.3, 999.0]))
    assert lam[0].isfinite()
    assert lam[1] == -math.inf


@pytest.mark.parametrize("given", [(), (0.1,), (0.1, 0.0), (0.1, 1.0), (0.1, math.nan)])
def test_impossible_betas_are_refused(given):
    with pytest.raises(ValueError, match="betas"):
        GivenBetas(given)()


def test_a_table_without_signal_is_refused():
    with pytest.raises(ValueError, match="lam_min"):
        DiscreteVP(ZeroTerminalSNR(), lam_min=None).schedule(at(0.5))


def test_piecewise_linear_functions_and_their_inverse():
    table = at([0.0, 1.0, 3.0, 3.5])
    u = at([-0.5, 0.0, 0.25, 1.0, 1.5, 3.0, 4.0])
    value, slope = interpolate(table, u)
    close(value, at([-0.5, 0.0, 0.25, 1.0, 2.0, 3.5, 4.0]))
    assert slope.tolist() == [1, 1, 1, 2, 2, 0.5, 0.5]
    close(invert(table, value), u)


# --- relations between paths -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "time"),
    [
        pytest.param(
            Polynomial(1.0), RectifiedFlow(), lambda t: t, id="polynomial of degree one is the rectified flow"
        ),
        pytest.param(Polynomial(3.0), RectifiedFlow(), lambda t: t**3, id="any degree is it in another time"),
        pytest.param(OneSided(Straight()), RectifiedFlow(), lambda t: t, id="one-sided straight interpolant"),
        pytest.param(OneSided(Arc()), Trig(), lambda t: math.pi / 2 * t, id="one-sided arc"),
        pytest.param(AnchoredFlow(1.0), RectifiedFlow(), lambda t: t, id="anchored flow of noise alone"),
        pytest.param(RectifiedFlow(0.0), RectifiedFlow(), lambda t: t, id="no floor"),
        pytest.param(IndexedVP(LinearBetas(40)), DDPM(40), lambda t: t, id="ddpm is the linear table"),
    ],
)
def test_paths_that_are_others_in_another_time(one, other, time):
    t = interior(one, 50)
    for ours, theirs in zip(one.schedule(t), other.schedule(time(t)), strict=True):
        close(ours, theirs)


def test_sub_vp_has_the_variance_of_vp_squared():
    t = interior(SubVP(), 50)
    close(SubVP().schedule(t)[2], VP().schedule(t)[2] ** 2)


@pytest.mark.parametrize("variance", [0.03, 0.9999999, 1.0, 1.3, 400.0])
def test_variance_falls_geometrically_on_the_shortest_path(variance):
    path = ShortestPath(variance)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    a, _, s = path.schedule(t)
    close(a**2 + s**2, torch.ones_like(t), 1e-8)
    close(a**2 * variance + s**2, variance ** (1 - t), 1e-8)


def test_prior_edm_starts_from_noise_around_the_prior_mean():
    eps, y = normal(3, 2), normal(3, 2, seed=1)
    close(PriorEDM().start(eps, y), 80 * (eps + y))
    t = interior(PriorEDM(), 3)
    close(PriorEDM().sample(eps, eps, t, y), eps + t[:, None] * (eps + y))


def test_interpolants_start_and_end_at_their_two_ends():
    for path in (PATHS["brownian"], PATHS["parabola"], PATHS["brownian_arc"], PATHS["sine_squared"]):
        x0, x1, z = normal(4, 2), normal(4, 2, seed=1), normal(4, 2, seed=2)
        close(path.sample(x0, z, torch.zeros(4).double(), x1), x0)
        close(path.sample(x0, z, torch.ones(4).double(), x1), x1)


def test_the_arc_keeps_the_variance_of_two_white_ends():
    a, b, s = PATHS["brownian_arc"].schedule(interior(PATHS["brownian_arc"], 20))
    close(a**2 + b**2 + s**2, torch.ones(20).double())


def test_a_brownian_interpolant_is_the_brownian_bridge():
    """Cov(x_t | x0, x1) = c t (1 - t): SB-VE in the time where its reference variance grows evenly."""
    bridge, sb = Interpolant(Straight(), Brownian(SBVE().s2(at(1.0)).item())), SBVE()
    t = interior(sb, 30)
    b = sb.schedule(t)[1]
    for ours, theirs in zip(bridge.schedule(b), sb.schedule(t), strict=True):
        close(ours, theirs)


def test_turning_lambda_has_no_inverse():
    with pytest.raises(ValueError, match="lambda"):
        PATHS["sine_squared"].time_of_log_snr(at(0.0))
    with pytest.raises(ValueError, match="lambda"):
        LogSNR(0.9, 0.1)(PATHS["sine_squared"], 4)


# --- RDDM's pair -----------------------------------------------------------------------------------------------


def test_residual_noise_pairs_give_the_x0_of_the_state():
    class Pair(torch.nn.Module):
        def forward(self, x, t):
            return torch.cat([torch.sin(x), torch.cos(x) + t[:, None]], 1)

    path, x, t = ResidualDenoising(20, 1.0), normal(4, 3), interior(ResidualDenoising(20), 4)
    denoiser = ResidualNoise(Pair(), path)
    estimate = denoiser(x, t)
    _, b, s = (v[:, None] for v in path.schedule(t))
    close(estimate.x0 + b * torch.sin(x) + s * estimate.eps, x)
    for i in range(4):
        alone = denoiser.bind()(x[i : i + 1], t[i].item())
        close(alone.x0[0], estimate.x0[i])
        close(alone.eps[0], estimate.eps[i])


def test_one_output_for_two_is_refused():
    class One(torch.nn.Module):
        def forward(self, x, t):
            return x

    with pytest.raises(ValueError, match="channels"):
        ResidualNoise(One(), ResidualDenoising()).bind()(normal(2, 4), 5.0)


# --- shaped noise ----------------------------------------------------------------------------------------------

STD = at([0.2, 1.0, 3.0])
COLOUR = 1 / (1 + radius(4, 6))
SHAPERS = {"diagonal": (Diagonal(STD), (3,)), "spectral": (Spectral(COLOUR), (2, 4, 6))}
EVERY_SHAPER = pytest.mark.parametrize(("shaper", "shape"), SHAPERS.values(), ids=SHAPERS)


@EVERY_SHAPER
def test_white_undoes_shape_and_both_are_linear(shaper, shape):
    x, z = normal(5, *shape), normal(5, *shape, seed=1)
    close(shaper.white(shaper.shape(x)), x)
    close(shaper.shape(2 * x - z), 2 * shaper.shape(x) - shaper.shape(z))
    complex_x = torch.complex(x, z)
    close(shaper.shape(complex_x), torch.complex(shaper.shape(x), shaper.shape(z)))
    assert shaper.shape(x.float()).dtype == torch.float32


def test_diagonal_noise_has_its_variances():
    noise = Diagonal(0.5 * STD).noise(torch.empty(40_000, 3, dtype=torch.float64), seeded())
    close(noise.var(0), (0.5 * STD) ** 2, 0.05)


def test_spectral_noise_has_its_power():
    noise = Spectral(COLOUR).noise(torch.empty(20_000, 4, 6, dtype=torch.float64), seeded())
    power = frequencies(noise, 2).abs().square().mean(0)
    torch.testing.assert_close(power, COLOUR**2, rtol=0.06, atol=0)


def test_radius_counts_cycles():
    close(radius(4), at([0.0, 1.0, 2.0, 1.0]))
    assert radius(4, 6)[1, 4].item() == pytest.approx(math.sqrt(1 + 4))


def test_amplitudes_of_real_noise_are_even():
    odd = torch.ones(5).double()
    odd[1] = 2
    with pytest.raises(ValueError, match="amplitude"):
        Spectral(odd).shape(normal(2, 5))
    z = torch.complex(normal(2, 5), normal(2, 5, seed=1))
    close(Spectral(odd).white(Spectral(odd).shape(z)), z)
    for bad in (Diagonal, Spectral):
        with pytest.raises(ValueError, match="positive"):
            bad(at([1.0, 0.0]))


def shaped_world(path, mean, std):
    """x0 ~ N(mean, std^2) per coordinate with noise of standard deviation STD: E[x0 | x] and the shaped noise,
    exactly."""

    def denoise(x, t):
        a, _, s = (v.reshape(-1, 1) for v in path.schedule(torch.as_tensor(t, dtype=torch.float64).reshape(-1)))
        v = a**2 * std**2 + s**2 * STD**2
        x0 = mean + a * std**2 / v * (x - a * mean)
        return Estimate(x0, s * STD**2 / v * (x - a * mean))

    return denoise


@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M(), Heun(), Ancestral()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("path", [VP(), RectifiedFlow()], ids=["vp", "rf"])
def test_sampling_shaped_states_is_sampling_white_ones(path, solver):
    shaper, mean, std = Diagonal(STD), at([0.5, -1.0, 2.0]), at([0.3, 1.0, 2.0])
    world, x, grid = shaped_world(path, mean, std), normal(6, 3), Uniform()(path, 5)
    g = seeded(5)
    direct = sample(world, path.start(shaper.shape(x)), path, solver, grid, generator=lambda row: shaper.noise(x, g))
    white = sample(Whitened(world, shaper), path.start(x), path, solver, grid, generator=seeded(5))
    close(direct, shaper.shape(white), 1e-11)
    # The white world is the Gaussian of L^-1 x0 on the plain path.
    plain = sample(gaussian(path, mean / STD, std / STD, dim=3), path.start(x), path, solver, grid, generator=seeded(5))
    close(white, plain, 1e-11)


def test_shaped_samples_have_the_data_marginal():
    path, shaper, mean, std = VP(), Diagonal(STD), at([0.5, -1.0, 2.0]), at([0.3, 1.0, 2.0])
    n, g = 20_000, seeded(1)
    grid = LogSNR(end=1e-3)(path, 150)
    like = torch.empty(n, 3, dtype=torch.float64)
    x0 = mean + std * normal(n, 3, seed=9)
    start = path.sample(x0, shaper.noise(like, g), torch.ones(n).double())
    out = sample(
        shaped_world(path, mean, std), start, path, Ancestral(), grid, generator=lambda row: shaper.noise(like, g)
    )
    assert ((out.mean(0) - mean).abs() < 4 * std / math.sqrt(n)).all()
    close(out.std(0), std, 0.04)


# --- bands -----------------------------------------------------------------------------------------------------

SPD = SpectralShortestPath((4, 6), c1=0.6, c2=0.1, m=1.5)
POWER = 0.6 / (0.1 + radius(4, 6)) ** 1.5


def spectral_denoiser(prediction):
    """The exact network of a real Gaussian field of variance POWER per frequency, in pixels."""

    class Exact(torch.nn.Module):
        def forward(self, x, t):
            z = frequencies(x, 2)
            c = SPD.coeffs(t, z)
            v = c.a**2 * POWER + c.s**2
            x0, eps = c.a * POWER / v * z, c.s / v * z
            return pixels(x0 if isinstance(prediction, X0) else eps, 2)

    return Banding(Denoiser(FrequencyNet(Exact(), 2), SPD, prediction))


def flow(z, t, s):
    """Every frequency is a Gaussian of variance D^(1-t): the flow scales by the ratio of standard deviations."""
    return z * (POWER ** (1 - s) / POWER ** (1 - t)).sqrt()


def test_bands_are_the_paths_of_their_coordinates():
    t, z = at([0.2, 0.9]), torch.complex(normal(2, 3, 4, 6), normal(2, 3, 4, 6, seed=1))
    c = SPD.coeffs(t, z)
    for i, row in enumerate(POWER):
        for j, power in enumerate(row):
            a, _, s = ShortestPath(power.item()).schedule(t)
            close(c.a[:, 0, i, j].real, a)
            close(c.s[:, 0, i, j].real, s)
    eps = frequencies(normal(2, 3, 4, 6, seed=3), 2)
    close(SPD.sample(z, eps, t), c.a * z + c.s * eps)
    close(SPD.velocity(z, eps, t), c.da * z + c.ds * eps)
    close(SPD.start(eps), eps)
    assert len(SPD.bands) < POWER.numel()


@pytest.mark.parametrize("prediction", [X0(), Eps()], ids=["x0", "eps"])
@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M(), Heun()], ids=lambda s: type(s).__name__)
def test_banded_solvers_converge_to_the_flow_at_their_order(solver, prediction):
    z = frequencies(normal(3, 4, 6), 2)
    errors = []
    for n in (24, 48):
        grid = torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)
        out = sample(spectral_denoiser(prediction), z, SPD, Banded(solver), grid)
        errors.append((out - flow(z, 0.9, 0.1)).abs().max())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.25)


@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M(), Heun(), Ancestral()], ids=lambda s: type(s).__name__)
def test_banded_sampling_from_end_to_end_gives_real_images(solver):
    z = frequencies(normal(3, 4, 6), 2)
    noise = [frequencies(normal(3, 4, 6, seed=k), 2) for k in range(9)]
    out = sample(
        spectral_denoiser(X0()), z, SPD, Banded(solver), Uniform()(SPD, 4), generator=lambda row: noise[int(8 * row.t)]
    )
    assert out.isfinite().all()
    close(torch.fft.ifft2(out, norm="ortho").imag, torch.zeros(3, 4, 6).double())


def test_one_band_is_the_plain_path():
    class Same(SpectralShortestPath):
        @property
        def bands(self):
            return (ShortestPath(0.3),) * len(super().bands)

    z = normal(4, 4, 6)
    world = lambda x, t: Estimate(torch.tanh(x), torch.cos(x))
    for solver in (DDIM(), DPMpp2M()):
        grid = Uniform()(SPD, 5)
        close(sample(world, z, Same((4, 6)), Banded(solver), grid), sample(world, z, ShortestPath(0.3), solver, grid))


def test_banded_solvers_say_what_they_need():
    with pytest.raises(TypeError, match="bands"):
        Banded(DDIM()).plan(VP(), Uniform()(VP(), 3))
    t = uniform(2)
    with pytest.raises(ValueError, match="per-sample"):
        Banded(DDIM()).step(SPD, normal(2, 4, 6), Estimate(normal(2, 4, 6), normal(2, 4, 6)), t, t / 2)


# --- configurations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", over(PATHS | {"spd": SPD}))
def test_paths_are_rebuilt_from_their_description(path):
    again = build(json.loads(json.dumps(describe(path))))
    assert again == path
    assert hash(again) == hash(path)


# --- golden vectors --------------------------------------------------------------------------------------------


def path_tables():
    from golden_cases import Golden

    file = GOLDEN / "solvers_dev.json"
    return [c for c in Golden(file).cases() if c["family"] == "path_table"] if file.is_file() else []


@pytest.mark.parametrize("case", path_tables(), ids=lambda c: c["id"])
def test_golden_path_tables(case: Case):
    assert error(case) <= 1
