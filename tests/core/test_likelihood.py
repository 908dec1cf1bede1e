"""Log densities against exact ones, and the probes of a score on worlds where the answer is known."""

import math

import pytest
import torch
from torch import nn
from worlds import correlated, name, normal

from fewstep.denoiser import Denoiser
from fewstep.estimate import Estimate
from fewstep.grids import LogSNR, Uniform
from fewstep.guidance.apg import APG
from fewstep.guidance.cfg import CFGRule
from fewstep.guidance.rule import Mixed
from fewstep.likelihood import ExactTrace, Hutchinson, ItoLogDensity, flow_density, log_likelihood, sde, value_and_trace
from fewstep.paths import EDM, VP, RectifiedFlow, Trig
from fewstep.prediction import V
from fewstep.probes import asymmetry, flipd, intrinsic_dimension
from fewstep.sampling import sample
from fewstep.solvers import Ancestral
from fewstep.toy import Mixture, gaussian

DIM = 3
GRIDS = {  # sampling grids inside the singular ends
    VP(): lambda n: LogSNR(end=0.05)(VP(), n + 1)[:-1],
    RectifiedFlow(): lambda n: torch.linspace(1, 0.1, n + 1, dtype=torch.float64),
    EDM(): lambda n: LogSNR(end=0.1)(EDM(), n + 1)[:-1],
    Trig(): lambda n: torch.linspace(Trig().t_max, 0.1, n + 1, dtype=torch.float64),
}
OVER_PATHS = pytest.mark.parametrize(("path", "grid"), GRIDS.items(), ids=map(name, GRIDS))


def close(ours, theirs, tol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def state(world, t, n=5):
    """Samples of the world at time t."""
    x0, eps = world.draw(n, seeded(1)), normal(n, world.means.shape[1], seed=2)
    return world.path.sample(x0, eps, torch.full((n,), t, dtype=torch.float64), world.y)


@OVER_PATHS
def test_the_likelihood_of_a_mixture_is_its_density(path, grid):
    world, times = correlated(path), grid(48)
    end = times[-1].item()
    x = state(world, end)
    ours = log_likelihood(world, x, path, times, prior=lambda z: world.log_density(z, times[0].item()))
    close(ours, world.log_density(x, end), tol=2e-5)


@OVER_PATHS
def test_densities_follow_the_flow_both_ways(path, grid):
    world, times = correlated(path), grid(32)
    start, end = times[0].item(), times[-1].item()
    x = state(world, start)
    there, change = flow_density(world, x, path, times)
    close(change, world.log_density(there, end) - world.log_density(x, start), tol=1e-4)
    back = flow_density(world, there, path, times.flip(0))
    close(back.x, x, tol=3e-4)
    close(back.change, -change, tol=3e-4)


@OVER_PATHS
def test_the_flow_is_of_fourth_order(path, grid):
    world = gaussian(path, torch.tensor([0.5, -0.3, 0.1]), torch.tensor([0.3, 1.0, 1.7]), dim=DIM)

    def errors(n):
        times = grid(n)
        start, end = times[0].item(), times[-1].item()
        x = state(world, start)
        there, change = flow_density(world, x, path, times)
        exact = world.flow_map(x, start, end)
        density = world.log_density(exact, end) - world.log_density(x, start)
        return (there - exact).abs().max().item(), (change - density).abs().max().item()

    for coarse, fine in zip(errors(16), errors(32), strict=True):
        assert math.log2(coarse / fine) > 3.7


def test_the_default_prior_is_what_sampling_starts_from():
    """On a rectified flow x_1 is the noise itself, so nothing is approximated."""
    path = RectifiedFlow()
    world, times = correlated(path), GRIDS[path](64)
    x = state(world, 0.1)
    close(log_likelihood(world, x, path, times), world.log_density(x, 0.1), tol=1e-5)


def test_an_anchor_is_part_of_the_flow():
    from fewstep.paths.ouve import OUVE

    path, y = OUVE(), normal(5, DIM, seed=9)
    world, times = correlated(path, y), torch.linspace(1, 0.3, 33, dtype=torch.float64)
    x = state(world, 0.3)
    ours = log_likelihood(world, x, path, times, prior=lambda z: world.log_density(z, 1.0), y=y)
    close(ours, world.log_density(x, 0.3), tol=1e-5)
    # The default prior replaces the unknown x0 by y at the noisy end.
    a, b, s = (v.item() for v in path.schedule(torch.tensor(1.0, dtype=torch.float64)))
    end, change = flow_density(world, x, path, times.flip(0), y=y)
    normal_density = -0.5 * (((end - (a + b) * y) / s) ** 2 + math.log(2 * math.pi * s**2)).sum(1) - change
    close(log_likelihood(world, x, path, times, y=y), normal_density)


def test_one_probe_is_exact_where_the_jacobian_is_diagonal():
    world, times = gaussian(VP(), 0.3, 0.5, dim=DIM), GRIDS[VP()](16)
    x = state(world, times[-1].item())
    exact = log_likelihood(world, x, VP(), times)
    close(log_likelihood(world, x, VP(), times, Hutchinson(1, seeded())), exact)


def test_random_traces_are_unbiased_with_the_known_variance():
    matrix = normal(DIM, DIM)
    x = normal(1, DIM).expand(20000, DIM)
    _, one = value_and_trace(lambda x: x @ matrix.T, x, *Hutchinson(1, seeded()).directions(x))
    sym = (matrix + matrix.T) / 2
    variance = 2 * (sym.square().sum() - sym.diagonal().square().sum())
    assert abs(one.mean() - matrix.trace()) < 4 * (variance / 20000).sqrt()
    assert one.var().item() == pytest.approx(variance.item(), rel=0.05)
    _, four = value_and_trace(lambda x: x @ matrix.T, x, *Hutchinson(4, seeded()).directions(x))
    assert four.var().item() == pytest.approx(variance.item() / 4, rel=0.05)
    _, exact = value_and_trace(lambda x: x @ matrix.T, x, *ExactTrace().directions(x))
    close(exact, matrix.trace().expand(20000))


def test_a_network_has_a_likelihood():
    """A network with the exact output of a Gaussian world, through Denoiser, also under no_grad."""
    path = Trig()
    world, times = gaussian(path, 0.0, 0.6, dim=2), GRIDS[path](48)

    class Exact(nn.Module):
        def forward(self, x, t):
            a, s = t.cos()[:, None], t.sin()[:, None]
            v = a**2 * 0.36 + s**2
            return a * s / v * x - s * a * 0.36 / v * x  # a eps - s x0

    denoise = Denoiser(Exact(), path, V()).bind()
    x = state(world, 0.1)
    with torch.no_grad():
        ours = log_likelihood(denoise, x, path, times)
    close(ours, world.log_density(x, 0.1), tol=1e-4)
    assert not ours.requires_grad


def test_a_singular_end_is_refused():
    with pytest.raises(ValueError, match=r"no finite velocity at t = 0"):
        flow_density(correlated(VP()), normal(2, DIM), VP(), Uniform()(VP(), 4))


@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), EDM()], ids=name)
def test_the_sde_keeps_the_variance_of_the_path(path):
    """d s^2/dt = 2 f s^2 + g^2 and da/dt = f a."""
    for t in torch.linspace(0.1, 0.9, 5, dtype=torch.float64).tolist():
        f, g2, s = sde(path, t)
        hi, lo = (path.schedule(torch.tensor(t + d, dtype=torch.float64)) for d in (1e-5, -1e-5))
        assert f == pytest.approx((hi[0].log() - lo[0].log()).item() / 2e-5, abs=1e-5)
        assert 2 * f * s**2 + g2 == pytest.approx((hi[2] ** 2 - lo[2] ** 2).item() / 2e-5, rel=1e-5)


@pytest.mark.parametrize("path", [VP(), RectifiedFlow()], ids=name)
def test_the_ito_estimate_is_exact_to_the_root_of_the_step(path):
    world = correlated(path)
    start, end = 0.95, 0.15

    def rms(n):
        x, ito = state(world, start, 200), ItoLogDensity(path)
        times = torch.linspace(start, end, n + 1, dtype=torch.float64)
        out = sample(world, x, path, Ancestral(), times, generator=seeded(), callbacks=[ito])
        return (ito.change - world.log_density(out, end) + world.log_density(x, start)).square().mean().sqrt().item()

    coarse, fine = rms(40), rms(640)
    assert fine < 0.6
    assert math.log2(coarse / fine) / 4 == pytest.approx(0.5, abs=0.15)


def test_the_ito_estimate_does_not_see_the_anchor():
    from fewstep.paths.ouve import OUVE

    path, y = OUVE(), normal(5, DIM, seed=9)
    times = torch.linspace(1, 0.3, 20, dtype=torch.float64)
    b = path.schedule(times)[1]
    plain, moved = ItoLogDensity(path), ItoLogDensity(path, y)
    x = state(correlated(path), 1.0)
    sample(correlated(path), x, path, Ancestral(), times, generator=seeded(), callbacks=[plain])
    sample(correlated(path, y), x + b[0] * y, path, Ancestral(), times, y, seeded(), callbacks=[moved])
    close(moved.change, plain.change, tol=1e-8)


# Probes


def rotating(omega):
    """eps = x + omega R x in the plane."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)

    def denoise(x, t):
        eps = x + omega * x @ turn.T
        return Estimate(x - eps, eps)

    return denoise


@pytest.mark.parametrize("trace", [None, Hutchinson(5, seeded())], ids=["exact", "probes"])
def test_true_scores_are_gradients(trace):
    c, u = correlated(VP()), gaussian(VP(), 0.2, 0.7, dim=DIM)
    x = normal(6, DIM)
    assert asymmetry(c, x, 0.4, trace).max() < 1e-12
    assert asymmetry(Mixed((c, u), CFGRule(4.0)), x, 0.4, trace).max() < 1e-12
    assert asymmetry(Mixed((c, u), APG(4.0), VP()), x, 0.4, trace).min() > 1e-3


@pytest.mark.parametrize("omega", [0.0, 0.5, 3.0])
def test_the_asymmetry_of_a_rotation_is_known(omega):
    x = normal(4, 2)
    known = torch.full((4,), 2 * omega / math.sqrt(1 + omega**2), dtype=torch.float64)  # |2 omega R|/|I + omega R|
    close(asymmetry(rotating(omega), x, 0.5), known)
    close(asymmetry(rotating(omega), x, 0.5, Hutchinson(2, seeded())), known)  # |J v| is the same for all v here


def test_probed_asymmetry_approaches_the_exact_one():
    matrix = normal(DIM, DIM, seed=3)
    field, x = (lambda x, t: Estimate(x, torch.tanh(x @ matrix.T))), normal(4, DIM)
    close(asymmetry(field, x, 0.5, Hutchinson(400, seeded())), asymmetry(field, x, 0.5), tol=0.1)


def plane(path, dim, ambient, modes=1):
    """Gaussians on random `dim`-dimensional planes in `ambient` dimensions."""
    q = torch.linalg.qr(normal(ambient, ambient, seed=dim)).Q[:, :dim]
    covs = torch.stack([(0.5 + k) * q @ q.T for k in range(modes)])
    means = (normal(modes, dim, seed=1) @ q.T) if modes > 1 else torch.zeros(1, ambient, dtype=torch.float64)
    return Mixture(path, means, covs)


@pytest.mark.parametrize("path", [VP(), EDM()], ids=name)
@pytest.mark.parametrize("dim", [1, 4, 8])
def test_dimension_of_a_plane(path, dim):
    world = plane(path, dim, 9, modes=2)
    x0, t = world.draw(3, seeded()), path.time_of_log_snr(torch.tensor(math.log(200.0))).item()  # s/a = 1/200
    d, spectrum = intrinsic_dimension(world, x0, path, t, generator=seeded())
    assert d.tolist() == [dim] * 3
    assert spectrum.shape == (3, 9)
    assert (spectrum[:, 8 - dim] / spectrum[:, 9 - dim]).min() > 10
    close(flipd(world, x0, path, t), torch.full((3,), float(dim), dtype=torch.float64), tol=1e-2)


def test_flipd_has_its_closed_form_on_a_gaussian():
    """s^2 (tr dS + |S|^2) + D with S = -(x - a mu)/v, v = a^2 ev + s^2, at any time."""
    path, std, mean, t = VP(), torch.tensor([0.0, 0.3, 1.1]), torch.tensor([0.2, -0.4, 0.9]), 0.4
    world, x0 = gaussian(path, mean, std, dim=DIM), normal(5, DIM)
    a, _, s = path.schedule(torch.tensor(t, dtype=torch.float64))
    v = a**2 * std.double() ** 2 + s**2
    z = a * (x0 - mean.double())
    known = DIM + s**2 * (-(1 / v).sum() + (z / v).square().sum(1))
    close(flipd(world, x0, path, t), known)
    close(flipd(world, x0, path, t, Hutchinson(1, seeded())), known)  # a diagonal Jacobian
