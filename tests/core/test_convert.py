"""Sampling on one path with a denoiser of another: exact for the Gaussian world, identity there and back, finite at the
ends."""

import math

import pytest
import torch
from golden_cases import Golden, error
from test_paths_all import MONOTONE, seeded
from worlds import GOLDEN, correlated, normal, uniform

from fewstep.convert import OnPath, convert_score, convert_state, convert_velocity, match, score_of_velocity
from fewstep.denoiser import Denoiser
from fewstep.estimate import Estimate
from fewstep.grids import Uniform
from fewstep.paths import DDPM, EDM, VP, RectifiedFlow, ResidualShift, Trig
from fewstep.paths.mean_reverting import MeanReverting
from fewstep.paths.ouve import OUVE
from fewstep.paths.residual_denoising import ResidualDenoising
from fewstep.paths.sbve import SBVE
from fewstep.paths.sub_vp import SubVP
from fewstep.prediction import Eps, U
from fewstep.sampling import sample
from fewstep.solvers import DDIM, Ancestral, DPMpp2M

NAMES = ("vp", "sub_vp", "ddpm", "edm", "rf", "trig", "ouve", "sbve", "mean_reverting", "resshift", "rddm", "prior_edm")
PATHS = {k: MONOTONE[k] for k in NAMES}
PAIRS = [pytest.param(a, b, id=f"{i}-{j}") for i, a in PATHS.items() for j, b in PATHS.items() if i != j]
EVERY_PAIR = pytest.mark.parametrize(("trained", "sampled"), PAIRS)
# Pairs that reach the same lambda range, for whole trajectories.
WHOLE = {
    "rf-trig": (RectifiedFlow(), Trig()),
    "trig-rf": (Trig(), RectifiedFlow()),
    "rf-vp": (RectifiedFlow(), VP()),
    "rddm-resshift": (ResidualDenoising(), ResidualShift()),
    "sbve-ouve": (SBVE(), OUVE()),
    "rf-sub_vp": (RectifiedFlow(), SubVP()),
    "rddm-irsde": (ResidualDenoising(1000, 1.0), MeanReverting()),
}


def close(ours, theirs, tol=1e-11):
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)


def common(trained, sampled, n, seed=0):
    """n times of the sampled path whose lambda lies in both paths' ranges."""
    lam = uniform(n, seed=seed, low=-0.4, high=2.5)
    return sampled.time_of_log_snr(lam)


@EVERY_PAIR
def test_states_and_velocities_are_those_of_the_same_data_and_noise(trained, sampled):
    r, x0, eps, y = common(trained, sampled, 6), normal(6, 3), normal(6, 3, seed=1), normal(6, 3, seed=2)
    x, (x_a, t) = sampled.sample(x0, eps, r, y), convert_state(sampled.sample(x0, eps, r, y), r, trained, sampled, y)
    close(trained.log_snr(t), sampled.log_snr(r), 1e-9)
    close(x_a, trained.sample(x0, eps, t, y), 1e-9)
    u = convert_velocity(trained.velocity(x0, eps, t, y), x, r, trained, sampled, y)
    close(u, sampled.velocity(x0, eps, r, y), 1e-8)


@EVERY_PAIR
def test_there_and_back_is_the_identity(trained, sampled):
    r, y = common(trained, sampled, 6), normal(6, 3, seed=2)
    x, u = normal(6, 3), normal(6, 3, seed=1)
    x_a, t = convert_state(x, r, trained, sampled, y)
    back, again = convert_state(x_a, t, sampled, trained, y)
    close(again, r, 1e-11)
    close(back, x, 1e-11)
    there = convert_velocity(u, x_a, t, sampled, trained, y)
    close(convert_velocity(there, x, r, trained, sampled, y), u, 1e-9)
    score = convert_score(u, r, trained, sampled)
    close(convert_score(score, t, sampled, trained), u, 1e-12)


@pytest.mark.parametrize(("trained", "sampled"), WHOLE.values(), ids=WHOLE)
def test_a_converted_world_is_the_world_of_the_other_path(trained, sampled):
    y = normal(6, 3, seed=2) if trained.anchored or sampled.anchored else None
    r, x = common(trained, sampled, 6, seed=4), normal(6, 3)
    ours = OnPath(correlated(trained, y), trained, sampled, y)(x, r)
    theirs = correlated(sampled, y)(x, r)
    close(ours.x0, theirs.x0, 1e-9)
    close(ours.eps, theirs.eps, 1e-9)


@pytest.mark.parametrize(("trained", "sampled"), WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M(), Ancestral()], ids=lambda s: type(s).__name__)
def test_trajectories_commute_with_the_conversion(trained, sampled, solver):
    """Sampling on B, and sampling on A between the matched times, end in states that are images of each other."""
    y = normal(6, 3, seed=2) if trained.anchored or sampled.anchored else None
    grid = sampled.time_of_log_snr(torch.linspace(-0.4, 2.0, 6, dtype=torch.float64))
    x, world = normal(6, 3), correlated(trained, y)
    ours = sample(OnPath(world, trained, sampled, y), x, sampled, solver, grid, y, seeded(7))
    x_a, _ = convert_state(x, grid[:1].expand(6), trained, sampled, y)
    theirs = sample(world, x_a, trained, solver, match(grid, trained, sampled)[0], y, seeded(7))
    close(convert_state(ours, grid[-1:].expand(6), trained, sampled, y)[0], theirs, 1e-9)


@EVERY_PAIR
def test_conversion_is_finite_from_end_to_end(trained, sampled):
    """Also where the trained path does not reach the sampled one's lambda, and where a bridge has no noise."""
    y = normal(4, 3, seed=1) if trained.anchored or sampled.anchored else None
    seen = []

    def known(x, t):
        seen.append((x, t))
        return Estimate(torch.tanh(x), torch.cos(x))

    x, grid = sampled.start(normal(4, 3), y), Uniform()(sampled, 4)
    out = sample(OnPath(known, trained, sampled, y), x, sampled, DDIM(), grid, y)
    assert out.isfinite().all()
    for x_a, t in seen:
        assert x_a.isfinite().all()
        assert trained.t_min <= t <= trained.t_max
    known_t = torch.cat([grid[-1:], grid[:1]])
    x_a, t = convert_state(normal(2, 3), known_t, trained, sampled, None if y is None else y[:2])
    assert x_a.isfinite().all()
    assert t[0] == trained.t_min or sampled.schedule(grid[-1])[2] > 0


def test_per_sample_times_are_those_of_each_sample():
    trained, sampled, y = ResidualShift(), SBVE(), normal(4, 3, seed=2)
    world, x, r = correlated(trained, y), normal(4, 3), uniform(4, low=0.1, high=0.9)
    together = OnPath(world, trained, sampled, y)(x, r)
    for i in range(4):
        alone = OnPath(correlated(trained, y[i : i + 1]), trained, sampled, y[i : i + 1])(x[i : i + 1], r[i].item())
        close(alone.x0[0], together.x0[i], 1e-12)
        close(alone.eps[0], together.eps[i], 1e-12)


class Labels(torch.nn.Module):
    """A network that remembers the labels it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t):
        self.seen.append(t.tolist())
        return torch.tanh(x)


@pytest.mark.parametrize("per_sample", [False, True])
def test_networks_are_given_the_labels_of_their_own_path(per_sample):
    """A DDPM network sampled on a rectified flow: labels are its indices of equal lambda."""
    net, flow, table = Labels(), RectifiedFlow(), DDPM()
    on_flow = OnPath(Denoiser(net, table, Eps()).bind(), table, flow)
    grid = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    if per_sample:
        on_flow(normal(3, 2), grid)
        ours = net.seen[0]
    else:
        sample(on_flow, normal(3, 2), flow, DDIM(), torch.cat([grid, grid.new_zeros(1)]))
        assert all(len(set(v)) == 1 for v in net.seen)
        ours = [v[0] for v in net.seen]
    lam = table.log_snr(torch.tensor(ours, dtype=torch.float64))
    close(lam, flow.log_snr(grid), 1e-9)


def test_a_flow_network_on_edm_is_sigma_over_one_plus_sigma():
    """Closed form: t = sigma/(1 + sigma), x_A = x/(1 + sigma)."""
    net = Labels()
    sigma = torch.tensor([0.5, 3.0, 70.0], dtype=torch.float64)
    t, k = match(sigma, RectifiedFlow(), EDM())
    close(t, sigma / (1 + sigma), 1e-14)
    close(k, 1 / (1 + sigma), 1e-14)
    x = normal(3, 2)
    ours = OnPath(Denoiser(net, RectifiedFlow(), U()).bind(), RectifiedFlow(), EDM())(x, sigma)
    x_a = x / (1 + sigma)[:, None]
    close(ours.x0, x_a - t[:, None] * torch.tanh(x_a))


def test_beyond_what_a_network_has_seen_it_is_asked_at_its_end():
    t, k = match(torch.tensor([1.0, 0.0], dtype=torch.float64), VP(), RectifiedFlow())
    assert t.tolist() == [1.0, 0.0]
    assert k.tolist() == pytest.approx([1.0, 1.0])


def test_score_of_a_velocity():
    for path in (VP(), RectifiedFlow(), ResidualShift(), OUVE()):
        y = normal(6, 3, seed=2) if path.anchored else None
        world, x = correlated(path, y), normal(6, 3)
        t = path.t_min + (path.t_max - path.t_min) * uniform(6, low=0.2, high=0.9)
        at = world(x, t)
        close(score_of_velocity(path.velocity(at.x0, at.eps, t, y), x, t, path, y), world.score(x, t), 1e-8)


def test_scores_convert_with_the_scale():
    r, x = uniform(5, low=0.2, high=0.9), normal(5, 3)
    x_a, t = convert_state(x, r, RectifiedFlow(), VP())
    ours = convert_score(correlated(RectifiedFlow()).score(x_a, t), r, RectifiedFlow(), VP())
    close(ours, correlated(VP()).score(x, r), 1e-9)


def test_half_precision_states_keep_their_type_and_double_precision_scalars():
    x = normal(4, 3)
    for dtype, tol in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        ours = OnPath(correlated(RectifiedFlow()), RectifiedFlow(), VP())
        seen = []
        on_path = OnPath(lambda x, t: seen.append(x) or Estimate(x, x), RectifiedFlow(), VP())
        assert on_path(x.to(dtype), 0.3).x0.dtype == dtype
        assert on_path(x.to(dtype), torch.full((4,), 0.3)).x0.dtype == dtype
        close(seen[0].double(), seen[1].double(), tol)
        assert ours(x, 0.3).x0.dtype == torch.float64


def test_golden_rbf_conversion():
    file = GOLDEN / "solvers_dev.json"
    if not file.is_file():
        pytest.skip(f"no golden vectors at {GOLDEN}")
    (case,) = (c for c in Golden(file).cases() if c["family"] == "rbf_conversion")
    assert error(case) <= 1
    assert math.isfinite(error(case))
