"""The enhancer: front end, noise, levels, batches, step budgets, and the published samplers on its paths."""

import math

import pytest
import torch
from torch import nn

from fewstep.artifacts import load, save
from fewstep.denoiser import Denoiser
from fewstep.grids import ThenClean, Uniform
from fewstep.paths import OUVE, SBVE
from fewstep.precondition import AnchoredPrecondition
from fewstep.prediction import X0, Residual, Score
from fewstep.sampling import sample
from fewstep.solvers import DDIM, Ancestral, EulerMaruyama, MeanAtEnd, PredictorCorrector
from fewstep.solvers.bridge import BridgeStart
from fewstep_audio.enhancement.enhancer import Enhancer, peak
from fewstep_audio.enhancement.spectrogram_unet import SpectrogramUNet
from fewstep_audio.item_noise import ItemNoise
from fewstep_audio.spectrogram import ComplexSpectrogram

FRONT = ComplexSpectrogram(n_fft=62, hop=16, factor=0.25)
ROOT2 = math.sqrt(2)
# The published paths, in the units of real channels (see enhancer.py).
OU = OUVE(sigma_min=0.05 / ROOT2, sigma_max=0.5 / ROOT2)
SB = SBVE(c=0.4 / 2)
PC = MeanAtEnd(PredictorCorrector(EulerMaruyama(), snr=0.5))
SGMSE = (OU, PC, ThenClean(Uniform(end=0.03)))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def speech(*shape, seed=0):
    return 0.3 * randn(*shape, seed=seed).clamp(-3, 3)


class Oracle(nn.Module):
    """Always answers the same spectrogram, and counts its calls."""

    def __init__(self, x0, stride=1):
        super().__init__()
        self.x0, self.stride, self.calls, self.times = x0, stride, 0, []

    def forward(self, x, t, noisy):
        self.calls += 1
        self.times.append(t[0].item())
        return self.x0.expand_as(x)


class Zero(nn.Module):
    def __init__(self, stride=1):
        super().__init__()
        self.stride = stride

    def forward(self, x, t, noisy):
        return torch.zeros_like(x)


def small(path=SB, prediction=None, solver=None, grid=None, **kw):
    """A random network without zero layers, in float64."""
    torch.manual_seed(0)
    net = SpectrogramUNet(width=8, mults=(1, 1), blocks=1)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    denoiser = Denoiser(net, path, prediction or Residual())
    return Enhancer(denoiser, solver or DDIM(), grid or Uniform(), spectrogram=FRONT, rate=8000, **kw).double().eval()


def enhancer(net, path=SB, prediction=None, solver=None, grid=None, steps=1):
    return Enhancer(
        Denoiser(net, path, prediction or Residual()), solver or DDIM(), grid or Uniform(), steps, FRONT, 8000
    )


# --- front end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize("n", [1, 15, 16, 31, 32, 128, 129, 1000])
def test_an_untrained_bridge_returns_its_input_at_any_length(n, stride):
    noisy = speech(2, n)
    out = enhancer(Zero(stride))(noisy, steps=2)
    torch.testing.assert_close(out, noisy, rtol=0, atol=1e-6)


def test_frames_are_padded_to_the_stride_and_cut_again():
    model = enhancer(Zero(8))
    x = model.encode(speech(2, 300))
    assert x.shape == (2, 2, 32, 24)
    assert not x[..., 300 // 16 + 1 :].any()
    torch.testing.assert_close(model.decode(x + 0, 300), speech(2, 300), rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="33 bins .* no multiple of the network's stride 8"):
        Enhancer(Denoiser(Zero(8), SB, Residual()), DDIM(), Uniform(), 1, ComplexSpectrogram(64, 16))


@pytest.mark.parametrize("gain", [1e-4, 7.0])
def test_the_level_of_the_input_is_undone(gain):
    model, noisy = small(steps=2), speech(2, 400)
    torch.testing.assert_close(model(gain * noisy), gain * model(noisy), rtol=1e-7, atol=1e-12)


def test_silence_stays_silent_beside_speech():
    model, noisy = small(*SGMSE[:1], AnchoredPrecondition(0.1), *SGMSE[1:], steps=2), speech(2, 400)
    noisy[1] = 0
    out = model(noisy)
    assert out[0].abs().max() > 0.01
    assert not out[1].any()


def test_prepare_gives_speech_noisy_speech_as_condition_and_as_anchor():
    model, clean, noisy = enhancer(Zero(8)), speech(2, 300), 2 * speech(2, 300, seed=1)
    x0, cond, y = model.prepare({"clean": clean, "noisy": noisy})
    torch.testing.assert_close(model.decode(x0, 300) * peak(noisy), clean, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.decode(y, 300) * peak(noisy), noisy, rtol=0, atol=1e-6)
    assert cond.keys() == {"noisy"}
    assert cond["noisy"] is y
    assert model.decode(y, 300).abs().amax(1).tolist() == pytest.approx([1, 1])


# --- noise (sheet 12.5) --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "paper"),
    [
        (OU, {0.03: 0.0188, 0.5: 0.1217, 1.0: 0.3890}),
        (SB, {0.25: 0.338, 0.5: 0.492, 0.75: 0.546}),
    ],
    ids=["OUVE", "SBVE"],
)
def test_complex_noise_has_the_published_deviation(path, paper):
    """Sheet 3.4: std of the complex bin, sqrt(Re^2 + Im^2), of state minus mean, and half of its variance per part."""
    zero, eps = torch.zeros(1, 2, 400, 500, dtype=torch.float64), randn(1, 2, 400, 500)
    for t, std in paper.items():
        noise = path.sample(zero, eps, torch.tensor([t]), zero)[0]
        assert noise.square().sum(0).mean().sqrt().item() == pytest.approx(std, rel=5e-3, abs=5e-5)
        assert noise[0].std().item() == pytest.approx(std / ROOT2, rel=5e-3, abs=5e-5)
        assert noise[1].std().item() == pytest.approx(std / ROOT2, rel=5e-3, abs=5e-5)


def test_the_deviation_of_ouve_is_the_integral_of_its_variance():
    """P4: d s^2/dt = -2 theta s^2 + g^2/2 per real part, by Heun steps; a(1) = .2231."""
    n, v, theta = 20000, 0.0, 1.5
    g2 = lambda t: (0.05 * 10**t) ** 2 * 2 * math.log(10) / 2
    for i in range(n):
        t, dt = i / n, 1 / n
        slope = -2 * theta * v + g2(t)
        v += dt / 2 * (slope - 2 * theta * (v + dt * slope) + g2(t + dt))
        if i + 1 in (600, 10000, n):
            s = OU.schedule(torch.tensor((i + 1) / n, dtype=torch.float64))[2].item()
            assert s == pytest.approx(math.sqrt(v), rel=1e-4)
    assert OU.schedule(torch.tensor(1.0))[0].item() == pytest.approx(0.2231, abs=5e-5)


def test_sampling_starts_where_the_papers_do():
    y, eps = randn(2, 2, 32, 8), randn(2, 2, 32, 8, seed=1)
    torch.testing.assert_close(OU.start(eps, y), y + 0.3890 / ROOT2 * eps, rtol=0, atol=2e-4)
    torch.testing.assert_close(SB.start(eps, y), y, rtol=0, atol=0)


def test_noise_belongs_to_the_item():
    x = torch.zeros(3, 2, 4, 5)
    noise = ItemNoise(x, 5, [0, 7, 7])
    first, second = noise.draw(), noise.draw()
    alone = ItemNoise(x[:1], 5, [7])
    assert torch.equal(first[1:2], alone.draw())
    assert torch.equal(second[2:], alone.draw())
    assert torch.equal(first[1], first[2])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, ItemNoise(x, 6, [0, 7, 7]).draw())
    with pytest.raises(ValueError, match="seed -1"):
        ItemNoise(x, -1, [0, 1, 2])


# --- P3, P5, P14: bridges ------------------------------------------------------------------------------------------


def test_the_bridge_ends_at_speech_and_at_noisy_speech():
    """P3: mean(0) = x0, mean(1) = y, std(0) = std(1) = 0."""
    a, b, s = SB.schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert (a.tolist(), b.tolist(), s.tolist()) == ([1, 0], [0, 1], [0, 0])


def published(kind, x, x0, y, p, q, z):
    """One step of the published SB samplers (sheet 3.4) with complex constants, z the paper's noise."""
    s2 = lambda t: 0.4 * (2.6 ** (2 * t) - 1) / (2 * math.log(2.6))
    total = s2(1)
    s_p, s_q, bar_p, bar_q = math.sqrt(s2(p)), math.sqrt(s2(q)), math.sqrt(total - s2(p)), math.sqrt(total - s2(q))
    if kind == "ode":
        w1 = s_q * bar_q / (s_p * bar_p)
        return (
            w1 * x
            + (bar_q**2 - bar_p * s_q * bar_q / s_p) / total * x0
            + (s_q**2 - s_p * s_q * bar_q / bar_p) / total * y
        )
    ratio = s_q**2 / s_p**2
    return ratio * x + (1 - ratio) * x0 + s_q * math.sqrt(1 - ratio) * z


@pytest.mark.parametrize("kind", ["ode", "sde"])
@pytest.mark.parametrize(("p", "q"), [(0.9, 0.5), (0.5, 0.1)])
def test_the_published_bridge_steps_are_the_cores(kind, p, q):
    """P5 with the noise of complex spectra: real parts of variance 1/2."""
    x, x0, y, xi = (randn(2, 2, 8, 4, seed=i) for i in range(4))
    solver, grid = (DDIM() if kind == "ode" else Ancestral()), torch.tensor([p, q], dtype=torch.float64)
    ours = sample(Denoiser(Oracle(x0), SB, X0()).bind({"noisy": y}, y), x, SB, solver, grid, y, lambda row: xi)
    torch.testing.assert_close(ours, published(kind, x, x0, y, p, q, xi / ROOT2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [DDIM(), MeanAtEnd(BridgeStart(Ancestral()))], ids=["ode", "sde"])
def test_one_step_of_the_bridge_is_a_predictive_network(solver):
    model, noisy = small(solver=solver), speech(2, 400)
    y = model.encode(noisy / peak(noisy))
    predicted = y - model.denoiser.net(y, torch.ones(2, dtype=torch.float64), noisy=y)
    torch.testing.assert_close(model(noisy), model.decode(predicted, 400) * peak(noisy), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("path", "solver", "grid"), [(SB, DDIM(), Uniform()), (SB, MeanAtEnd(BridgeStart(Ancestral())), Uniform()), SGMSE]
)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_with_the_true_speech_as_prediction_samplers_end_at_it(path, solver, grid, steps):
    """The published predictor is not exact for OUVE (docs/solvers_anchored.md): it comes near."""
    clean, noisy = speech(1, 400), speech(1, 400, seed=1)
    x0 = enhancer(Zero()).encode(clean / peak(noisy))
    model = enhancer(Oracle(x0), path, X0(), solver, grid)
    out = model(noisy, steps=steps)
    if path is SB:
        torch.testing.assert_close(out, clean, rtol=0, atol=1e-7)
    elif steps > 1:
        assert (out - clean).square().mean() < 0.05 * (noisy - clean).square().mean()


# --- P13: evaluations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "solver", "grid", "per_step"),
    [
        (SB, DDIM(), Uniform(), 1),
        (SB, MeanAtEnd(BridgeStart(Ancestral())), Uniform(), 1),
        (OU, MeanAtEnd(EulerMaruyama()), ThenClean(Uniform(end=0.03)), 1),
        (*SGMSE, 2),
    ],
)
def test_samplers_evaluate_the_network_as_often_as_advertised(path, solver, grid, per_step):
    for steps in (2, 30):
        net = Oracle(torch.zeros(()))
        model = enhancer(net, path, X0(), solver, grid)
        model(speech(1, 100), steps=steps)
        assert net.calls == model.evaluations(steps) == per_step * steps
        assert net.times[0] == 1.0
        assert min(net.times) == pytest.approx(0.03 if path is OU else 1 / steps)


# --- P2: batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [(SB, Residual(), DDIM(), Uniform()), (OU, AnchoredPrecondition(0.1), *SGMSE[1:])])
def test_a_padded_batch_gives_its_items_one_by_one(setting):
    model, noisy, lengths = small(*setting, steps=2), speech(4, 500), [500, 333, 500, 40]
    for i, n in enumerate(lengths):
        noisy[i, n:] = 0
    out = model(noisy, seed=3, lengths=lengths)
    for i, n in enumerate(lengths):
        alone = model(noisy[i : i + 1, :n], seed=3, items=[i])
        torch.testing.assert_close(out[i : i + 1, :n], alone, rtol=0, atol=1e-10)
        assert not out[i, n:].any()


def test_seeds_change_a_stochastic_enhancer_and_not_a_bridge():
    noisy = speech(1, 400)
    score, bridge = small(OU, AnchoredPrecondition(0.1), *SGMSE[1:], steps=3), small(steps=3)
    torch.randn(3)  # the global stream has no part in it
    assert torch.equal(score(noisy, seed=1), score(noisy, seed=1))
    assert not torch.allclose(score(noisy, seed=1), score(noisy, seed=2))
    assert torch.equal(bridge(noisy, seed=1), bridge(noisy, seed=2))


# --- artifacts, scores ---------------------------------------------------------------------------------------------


def test_an_artifact_holds_the_front_end(tmp_path):
    model = small(steps=2)
    again = load(save(model, tmp_path / "enhancer"))
    assert (again.spectrogram, again.rate, again.steps) == (FRONT, 8000, 2)
    noisy = speech(1, 300)
    assert torch.equal(again(noisy), model(noisy))


def test_scores_and_preview_of_an_untrained_bridge():
    clean = speech(2, 400).float()
    batch = {"clean": clean, "noisy": clean + 0.1 * speech(2, 400, seed=1).float()}
    model = enhancer(Zero(8))
    scores = model.scores(batch)
    torch.testing.assert_close(scores["si_sdr_gain"], torch.zeros(2), rtol=0, atol=1e-3)
    torch.testing.assert_close(scores["si_sdr"], torch.full((2,), 20.0), rtol=0, atol=1.5)
    (picture,) = model.preview(batch).values()
    assert picture.shape == (3, 32, 3 * 32)
    assert 0 <= picture.min() < picture.max() == 1


def test_a_score_network_is_read_as_its_score():
    """score = -eps/s: an exact score network denoises exactly."""
    x0, y, eps, t = randn(2, 2, 8, 4), randn(2, 2, 8, 4, seed=1), randn(2, 2, 8, 4, seed=2), torch.tensor([0.4, 1.0])
    x_t, s = OU.sample(x0, eps, t, y), OU.schedule(t.double())[2].reshape(-1, 1, 1, 1)

    class Exact(nn.Module):
        def forward(self, x, t, noisy):
            return -eps / s

    estimate = Denoiser(Exact(), OU, Score())(x_t, t, {"noisy": y}, y)
    torch.testing.assert_close(estimate.eps, eps, rtol=0, atol=1e-9)
    torch.testing.assert_close(estimate.x0, x0, rtol=0, atol=1e-9)
