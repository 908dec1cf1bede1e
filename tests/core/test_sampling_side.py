"""What goes on around the solver: time shift, one more step, Gibbs chains, boundary search, hallucination filter."""

import math

import pytest
import torch
from worlds import correlated, name, normal

from fewstep.boundary import search_boundary, tile_noise
from fewstep.denoiser import Denoiser
from fewstep.estimate import Estimate
from fewstep.gibbs import Chain, DrawnLevel, NormLevel, gibbs, karras_from
from fewstep.grids import Spaced, Uniform
from fewstep.guidance.time_shift import TimeShift
from fewstep.hallucination import PredictionVariance, keep_lowest
from fewstep.one_more_step import one_more_step
from fewstep.paths import DDPM, EDM, VE, VP, RectifiedFlow, ResidualShift
from fewstep.per_sample import sample_each
from fewstep.prediction import Eps
from fewstep.sampling import Callback, sample
from fewstep.solvers.ancestral import Ancestral
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.dpm_multistep import DPM2M
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.euler_maruyama import EulerMaruyama
from fewstep.solvers.heun import Heun
from fewstep.solvers.mean_at_end import MeanAtEnd
from fewstep.toy import Mixture, gaussian, ring


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


class Recording:
    """A denoiser that remembers the times it was asked about."""

    def __init__(self, inner):
        self.inner, self.times = inner, []

    def __call__(self, x, t):
        self.times.append(t)
        return self.inner(x, t)


# --- time shift ------------------------------------------------------------------------------------------------


def wide(path, dim=4096, std=0.5):
    """A Gaussian world of so many independent coordinates that the variance of a sample tells its level."""
    return Mixture(path, torch.zeros(1, dim, dtype=torch.float64), torch.full((1, dim), std**2, dtype=torch.float64))


def test_the_label_is_the_level_that_the_state_has():
    path, z = DDPM(), normal(3, 64)
    a, _, s = path.schedule(times(420.0, 500.0, 515.0))
    z = z / z.std(1, keepdim=True) * (a**2 * 0.25 + s**2).sqrt()[:, None]
    shift = TimeShift(wide(path), path, window=80.0, cutoff=100.0, var_data=0.25)
    # 420 is outside of the window of 40 on either side.
    assert shift.label(z, torch.full((3,), 500.0, dtype=torch.float64)).tolist() == [460, 500, 515]


def test_the_nearest_label_is_found_as_by_exhaustion():
    path = VP()
    shift = TimeShift(wide(path), path, window=0.2, cutoff=0.0, spacing=0.01, var_data=0.3)
    z, t = normal(5, 64) * torch.linspace(0.3, 1.2, 5, dtype=torch.float64)[:, None], times(0.2, 0.4, 0.5, 0.7, 0.95)
    found = shift.label(z, t)
    for i in range(5):
        tried = [min(max(t[i].item() + 0.01 * k, 0.0), 1.0) for k in range(-10, 11)]
        a, _, s = path.schedule(times(*tried))
        gap = (z[i].var() - (a**2 * 0.3 + s**2)) ** 2
        assert found[i].item() == pytest.approx(tried[gap.argmin().item()], abs=1e-12)


@pytest.mark.parametrize("y", [None, 2.0])
def test_shifted_estimates_belong_to_the_level_of_the_grid(y):
    path = DDPM() if y is None else ResidualShift()
    anchor = None if y is None else torch.full((3, 64), y, dtype=torch.float64)
    world = Recording(Mixture(path, torch.zeros(1, 64).double(), torch.ones(1, 64).double(), y=anchor))
    t = 500.0 if y is None else 8.0
    x = 1.3 * normal(3, 64) + (0.0 if y is None else path.schedule(times(t))[1] * anchor)
    ours = TimeShift(world, path, window=t / 2, cutoff=1.0, y=anchor)(x, t)
    (asked,) = world.times
    assert not torch.equal(asked, torch.full_like(asked, t))
    torch.testing.assert_close(ours.eps, world.inner(x, asked).eps, rtol=0, atol=0)
    a, b, s = path.schedule(times(t))
    torch.testing.assert_close(a * ours.x0 + s * ours.eps + (0 if y is None else b * anchor), x, rtol=1e-12, atol=1e-12)


def test_labels_stay_at_the_start_below_the_cutoff_and_without_a_window():
    path = DDPM()
    world = Recording(wide(path, 64))
    x, grid = normal(3, 64), Spaced()(path, 5)
    plain = sample(wide(path, 64), x, path, DDIM(), grid)
    still = sample(TimeShift(world, path, 0.0, 0.0), x, path, DDIM(), grid)
    torch.testing.assert_close(still, plain, rtol=1e-12, atol=1e-12)
    world.times.clear()
    sample(TimeShift(world, path, 100.0, 400.0), x, path, DDIM(), grid)
    assert [isinstance(t, torch.Tensor) for t in world.times] == [False, True, True, False, False]


def test_time_shift_repairs_states_that_are_off_their_level():
    """A trajectory handed over at the wrong time: asking at the true level ends nearer to the data's variance."""
    path, world = VP(), wide(VP())
    x = path.sample(world.draw(8, seeded()), normal(8, 4096), torch.full((8,), 0.55, dtype=torch.float64))
    grid = torch.linspace(0.5, 0.05, 6, dtype=torch.float64)
    a, _, s = (v.item() for v in path.schedule(grid[-1]))

    def gap(denoise):
        return abs(sample(denoise, x, path, DDIM(), grid).var().item() - (a**2 * 0.25 + s**2))

    shifted = TimeShift(world, path, window=0.2, cutoff=0.0, spacing=0.005, var_data=0.25)
    assert gap(shifted) < 0.9 * gap(world)


def test_time_shift_passes_the_grid_on_and_names_bad_arguments():
    path = VP()
    denoiser = Denoiser(torch.nn.Module(), path, Eps())
    denoiser.net.forward = lambda x, t: torch.tanh(x)
    bound, x, grid = denoiser.bind(), normal(3, 8), Uniform(end=0.1)(path, 4)
    shifted = TimeShift(bound, path, 0.1, 0.3, 0.01)
    out = sample(shifted, x, path, DDIM(), grid)
    by_hand = sample(lambda x, t: TimeShift(denoiser.bind(), path, 0.1, 0.3, 0.01)(x, t), x, path, DDIM(), grid)
    torch.testing.assert_close(out, by_hand, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="window >= 0, spacing > 0"):
        TimeShift(bound, path, 0.1, 0.3, 0.0)


# --- one more step ---------------------------------------------------------------------------------------------


def test_one_more_step_restores_the_mean_that_a_noisy_end_still_holds():
    """Stable Diffusion's schedule keeps a_T = .068: from noise alone the mean of a constant image is lost."""
    path = DDPM(beta_start=0.00085, beta_end=0.012, scaled=True)
    mean, std, n = 4.0, 0.3, 20_000
    world, noise = gaussian(path, mean, std), normal(n, 1, seed=3)
    start = one_more_step(lambda x: torch.full_like(x, -mean), noise, path)
    a, _, s = (v.item() for v in path.schedule(times(path.t_max)))
    torch.testing.assert_close(start, a * mean + s * noise, rtol=1e-13, atol=1e-13)
    grid = Spaced()(path, 50)
    with_step, without = (sample(world, x, path, DDIM(), grid).mean() - mean for x in (start, path.start(noise)))
    assert abs(with_step) < 4 * std / math.sqrt(n) + 1e-3
    assert without < -0.05


def test_one_more_step_has_its_own_guidance_and_noise():
    path, noise, fresh = VP(), normal(4, 3), normal(4, 3, seed=1)
    cond, uncond = (lambda x: -x), (lambda x: x + 1)
    a, _, s = (v.item() for v in path.schedule(times(1.0)))
    out = one_more_step(cond, noise, path, cfg=3.0, uncond=uncond, fresh=fresh)
    torch.testing.assert_close(out, s * fresh - a * (noise + 1 + 3 * (-noise - noise - 1)), rtol=1e-12, atol=1e-12)
    assert torch.equal(one_more_step(cond, noise, path, cfg=1.0, uncond=uncond), one_more_step(cond, noise, path))
    with pytest.raises(ValueError, match="cfg is 2.0"):
        one_more_step(cond, noise, path, cfg=2.0)


# --- a grid per sample -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver", [DDIM(), DPMpp2M(), DPM2M(), Heun(), EulerMaruyama(), Ancestral(), DPMpp2M(tail=(1,))], ids=str
)
@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), ResidualShift()], ids=name)
def test_a_batch_of_grids_is_a_loop_over_samples(solver, path):
    """Different starts, one of them at the singular end, all ending in clean data."""
    y = normal(4, 3, seed=1) if path.anchored else None
    start = path.t_min + (path.t_max - path.t_min) * times(1.0, 0.7, 0.5, 0.2)
    grids = path.t_min + (start - path.t_min)[:, None] * torch.linspace(1, 0, 5, dtype=torch.float64) ** 1.5
    x = normal(4, 3)
    together = sample_each(correlated(path, y), x, path, solver, grids, y, seeded(3))
    source = seeded(3)
    drawn = [torch.randn(4, 3, dtype=torch.float64, generator=source) for _ in range(8)]
    for i in range(4):
        anchor = None if y is None else y[i : i + 1]
        # One draw per stochastic step and batch, whatever the step of this sample does with it.
        draws = {t: drawn[k][i : i + 1] for k, t in enumerate(grids[i, :-1].tolist())}
        alone = sample(correlated(path, anchor), x[i : i + 1], path, solver, grids[i], anchor, lambda row: draws[row.t])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-10)


def test_per_sample_grids_name_what_they_refuse():
    with pytest.raises(ValueError, match="MeanAtEnd writes its own"):
        sample_each(correlated(VP()), normal(2, 3), VP(), MeanAtEnd(DDIM()), torch.ones(2, 3))
    with pytest.raises(ValueError, match="B = 2"):
        sample_each(correlated(VP()), normal(2, 3), VP(), DDIM(), torch.ones(3, 3))


# --- Gibbs chains ----------------------------------------------------------------------------------------------

LEVELS = torch.logspace(math.log10(0.05), math.log10(5.0), 17, dtype=torch.float64)


def exact_level(world, levels=LEVELS, mode=False):
    """p(sigma | x) of a mixture for equally probable levels; on EDM times are sigmas."""

    def logits(x):
        return torch.stack([world.log_density(x, s.item()) for s in levels], 1)

    return DrawnLevel(logits, tuple(levels.tolist()), mode)


def joint(world, n, seed):
    """x0 + sigma eps with sigma equally probable among the levels."""
    sigma = LEVELS[torch.randint(len(LEVELS), (n,), generator=seeded(seed))]
    x0 = world.draw(n, seeded(seed + 1))
    return Chain(x0 + sigma[:, None] * normal(n, x0.shape[1], seed=seed + 2), sigma)


def test_gibbs_chains_keep_the_joint_distribution_of_state_and_level():
    world, n = gaussian(EDM(), 0.7, 0.4), 20_000
    chain = joint(world, n, 10)
    chain, _ = gibbs(world, chain, EDM(), exact_level(world), sweeps=15, step=0.05, generator=seeded(20))
    variance = 0.16 + (LEVELS**2).mean()
    fourth = (3 * (0.16 + LEVELS**2) ** 2).mean() - variance**2
    assert abs(chain.x.mean() - 0.7) < 4 * math.sqrt(variance / n)
    # The Langevin step inflates variances by up to step/4 = 1.3 %.
    assert abs(chain.x.var() / variance - 1) < 4 * math.sqrt(fourth / n) / variance + 0.013
    counts = torch.stack([(chain.sigma - s).abs() < 1e-9 for s in LEVELS]).sum(1)
    expected = n / len(LEVELS)
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)


def test_gibbs_chains_forget_where_they_began():
    """From noise at the highest level alone, the levels spread to their prior: the chain walks through noise levels."""
    world, n = gaussian(EDM(), 0.7, 0.4), 2000
    start = Chain(5.0 * normal(n, 1), torch.full((n,), 5.0, dtype=torch.float64))
    chain, best = gibbs(world, start, EDM(), exact_level(world), 1, 0.3, generator=seeded(1))
    assert (best.sigma == chain.sigma).all()
    seen = []
    for k in range(3):
        chain, best = gibbs(world, chain, EDM(), exact_level(world), 20, 0.3, generator=seeded(2 + k))
        seen.append(chain.sigma.log().mean().item())
        assert (best.sigma <= chain.sigma).all()
    assert abs(seen[-1] - LEVELS.log().mean().item()) < abs(seen[0] - LEVELS.log().mean().item()) + 0.05
    assert seen[-1] == pytest.approx(LEVELS.log().mean().item(), abs=0.1)


@pytest.mark.parametrize("solver", [DPMpp2M(), Heun()], ids=name)
def test_any_solver_continues_from_the_smallest_sigma(solver):
    """Ten sweeps and five steps: samples of a ring of modes."""
    path = EDM()
    world, n = ring(path, 8, 2.0, 0.1), 256
    chain = Chain(5.0 * normal(n, 2), torch.full((n,), 5.0, dtype=torch.float64))
    chain, _ = gibbs(world, chain, path, exact_level(world), 40, 0.3, generator=seeded(5))
    _, best = gibbs(world, chain, path, exact_level(world), 10, 0.3, generator=seeded(6))
    out = sample_each(world, best.x, path, solver, karras_from(path, best.sigma, 5))
    distance = (out[:, None] - world.means).norm(dim=2).min(1).values
    assert (distance < 0.5).double().mean() > 0.98
    nearest = (out[:, None] - world.means).norm(dim=2).argmin(1)
    assert (torch.bincount(nearest, minlength=8) > n / 8 * 0.6).all()
    assert (best.sigma < 1.0).double().mean() > 0.5


def test_levels_by_mode_and_by_norm():
    path, dim = EDM(), 2048
    world = wide(path, dim, 0.05)
    sigma = times(0.1, 0.7, 3.0)
    x0 = world.draw(3, seeded())
    x = x0 + sigma[:, None] * normal(3, dim)
    mode = exact_level(world, mode=True)(x, x0, None)
    assert ((mode.log() - sigma.log()).abs() <= (LEVELS[1] / LEVELS[0]).log() / 2 + 0.05).all()
    torch.testing.assert_close(
        NormLevel(0.01, gain=1.0)(x, x0, None), (x - x0).square().mean(1).sqrt(), rtol=1e-12, atol=0
    )
    assert NormLevel(0.5, 2.0, 1.0)(x, x0, None).tolist() == pytest.approx([0.5, 0.7, 2.0], rel=0.05)


def test_norms_anneal_a_chain_without_a_classifier():
    """A gain below 1/sqrt(1 + step^2/4) lowers the level from sweep to sweep; at its floor the chain samples the
    level.
    """
    path, dim = EDM(), 2048
    world, sigma = wide(path, dim, 0.5), torch.full((3,), 5.0, dtype=torch.float64)
    _, best = gibbs(world, Chain(5.0 * normal(3, dim), sigma), path, NormLevel(0.5), 120, 0.3, generator=seeded(1))
    assert (best.sigma == 0.5).all()
    out = sample_each(world, best.x, path, DPMpp2M(), karras_from(path, best.sigma, 10))
    assert out.var(1).tolist() == pytest.approx([0.25] * 3, rel=0.1)
    grown, _ = gibbs(
        world, Chain(5.0 * normal(3, dim), sigma), path, NormLevel(0.01, gain=1.0), 1, 0.5, generator=seeded(1)
    )
    assert (grown.sigma / 5).tolist() == pytest.approx([math.sqrt(1 + 0.25 / 4)] * 3, rel=0.03)


def test_gibbs_runs_on_paths_of_variance_explosion_alone_and_repeats():
    world = gaussian(VE(), 0.7, 0.4)
    chain = Chain(normal(6, 1), torch.ones(6, dtype=torch.float64))
    first, again = (gibbs(world, chain, VE(), NormLevel(0.01, 50), 5, generator=seeded(3))[0] for _ in range(2))
    assert torch.equal(first.x, again.x)
    with pytest.raises(ValueError, match="VP has a"):
        gibbs(world, chain, VP(), NormLevel(0.1))


def test_karras_grids_start_at_each_sigma():
    path, sigma = EDM(), times(5.0, 0.3, 0.005)
    grids = karras_from(path, sigma, 6)
    assert grids.shape == (3, 7)
    torch.testing.assert_close(grids[:, 0], sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(grids[:2, 5], times(0.01, 0.01), rtol=1e-12, atol=0)
    assert (grids[:, -1] == 0).all()
    assert (grids.diff(dim=1) < 0).all()


# --- boundary search -------------------------------------------------------------------------------------------


def restorer(path, steps=4):
    """A deterministic sampler of a world whose answer depends on the start far more than on y."""

    def run(noise, y):
        world = correlated(path, y)
        return sample(world, path.start(noise, y), path, DDIM(), Uniform()(path, steps), y)

    return run


def test_the_best_of_n_starts_is_kept_and_is_the_minimum():
    run = restorer(ResidualShift(kappa=0.5))
    pairs = [(normal(8, 3, seed=k), normal(8, 3, seed=k + 50)) for k in range(2)]

    def metric(a, b):
        return (a - b).square().mean(1)

    best = search_boundary(run, pairs, 16, metric, seeded(7))
    assert best.noise.shape == (1, 3)
    assert best.score == best.scores.min().item()
    again = torch.cat([metric(run(best.noise.expand(8, 3), y), x0) for x0, y in pairs]).mean().item()
    assert again == pytest.approx(best.score, rel=1e-12)
    longer = search_boundary(run, pairs, 20, metric, seeded(7))
    assert torch.equal(longer.scores[:16], best.scores)
    assert longer.score <= best.score


def test_the_chosen_start_beats_the_median_on_inputs_it_has_not_seen():
    path, run = ResidualShift(kappa=0.5), restorer(ResidualShift(kappa=0.5))

    def metric(a, b):
        return (a - b).square().mean(1)

    world = correlated(path)

    def pairs(seed):
        x0 = world.draw(64, seeded(seed))
        return x0, x0 + 0.3 * normal(64, 3, seed=seed)

    best = search_boundary(run, [pairs(1)], 32, metric, seeded(3))
    median = search_boundary(run, [pairs(1)], 32, metric, seeded(3)).scores.median()
    x0, y = pairs(2)
    assert metric(run(best.noise.expand(64, 3), y), x0).mean() < median


def test_noise_is_tiled_periodically_and_cropped():
    noise = normal(1, 2, 3, 4)
    tiled = tile_noise(noise, 7, 3)
    assert tiled.shape == (1, 2, 7, 3)
    for i in range(7):
        assert torch.equal(tiled[..., i, :], noise[..., i % 3, :3])
    with pytest.raises(ValueError, match="at least one of each"):
        search_boundary(lambda n, y: n, [], 3, lambda a, b: a.mean(1))


# --- hallucination filter --------------------------------------------------------------------------------------


class Predictions(Callback):
    def __init__(self):
        self.x0, self.t = [], []

    def on_estimate(self, x, estimate, row):
        self.x0.append(estimate.x0)
        self.t.append(row.t)
        return estimate


@pytest.mark.parametrize("k", [2, 5, 20])
def test_the_running_variance_is_that_of_the_stored_predictions(k):
    path, grid = VP(), Uniform(end=0.01)(VP(), 20)
    filter_, stored = PredictionVariance(grid[-1 - k].item()), Predictions()
    sample(correlated(path), normal(6, 3), path, DDIM(), grid, callbacks=[filter_, stored])
    assert filter_.count == k
    expected = torch.stack(stored.x0[-k:]).var(0, correction=0).mean(1)
    torch.testing.assert_close(filter_.score, expected, rtol=1e-10, atol=1e-14)


def test_one_prediction_counts_per_step():
    path, grid = VP(), Uniform(end=0.01)(VP(), 8)
    filter_, stored = PredictionVariance(2.0), Predictions()
    sample(correlated(path), normal(6, 3), path, Heun(), grid, callbacks=[filter_, stored])
    assert filter_.count == 8
    expected = torch.stack(stored.x0[::2]).var(0, correction=0).mean(1)
    torch.testing.assert_close(filter_.score, expected, rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match="at least 2"):
        _ = PredictionVariance(0.0).score


def test_complex_predictions_have_the_variance_of_their_parts():
    filter_, x0 = PredictionVariance(1.0), torch.complex(normal(5, 4, 3), normal(5, 4, 3, seed=1))
    for v in x0:
        filter_.on_estimate(v, Estimate(v, v), Row(1.0))
        filter_.on_step(v, 1, 1, Row(1.0))
    expected = (x0.real.var(0, correction=0) + x0.imag.var(0, correction=0)).mean(1)
    torch.testing.assert_close(filter_.score, expected, rtol=1e-12, atol=0)


class Row:
    def __init__(self, t):
        self.t = t


def test_samples_between_the_modes_score_highest():
    """A smoothed score (too wide modes) interpolates between modes; the score finds those samples."""
    path = VP()
    modes = torch.tensor([[-2.0], [0.0], [2.0]], dtype=torch.float64)
    sharp = Mixture(path, modes, torch.full((3, 1), 0.02**2, dtype=torch.float64))

    def smoothed(x, t):
        """The average of exact predictions around x: what a network that cannot make a jump answers."""
        a, _, s = (v.item() for v in path.schedule(times(t)))
        x0 = torch.stack([sharp(x + d, t).x0 for d in torch.linspace(-0.3, 0.3, 7, dtype=torch.float64)]).mean(0)
        return Estimate(x0, (x - a * x0) / s)

    grid = Uniform(end=1e-3)(path, 100)
    filter_ = PredictionVariance(grid[-10].item())
    out = sample(smoothed, normal(4000, 1, seed=4), path, DDIM(), grid, callbacks=[filter_])
    off = (out - modes.T).abs().min(1).values > 0.2
    share = off.double().mean().item()
    assert 0.003 < share < 0.1
    kept = keep_lowest(filter_.score, 0.9)
    assert off[kept].double().mean() < 0.2 * share


def test_keep_lowest_keeps_the_order():
    score = times(3.0, 1.0, 2.0, 0.5)
    assert keep_lowest(score, 0.5).tolist() == [1, 3]
    assert keep_lowest(score, 1.0).tolist() == [0, 1, 2, 3]
    assert keep_lowest(score, 0.01).tolist() == [3]
    with pytest.raises(ValueError, match="share is 0"):
        keep_lowest(score, 0.0)
