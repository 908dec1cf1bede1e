"""The losses of enhancement training, and StoRM: two stages, trained together."""

import math

import pytest
import torch
from torch import nn

from fewstep.artifacts import load, save
from fewstep.denoiser import Denoiser
from fewstep.grids import ThenClean, Uniform
from fewstep.paths import OUVE, SBVE
from fewstep.precondition import AnchoredPrecondition
from fewstep.prediction import Residual, Score
from fewstep.solvers import DDIM, EulerMaruyama, MeanAtEnd
from fewstep.times import BetweenTimes, GridTimes
from fewstep_audio.enhancement.enhancer import Enhancer, peak
from fewstep_audio.enhancement.spectrogram_unet import SpectrogramUNet
from fewstep_audio.enhancement.storm import Storm
from fewstep_audio.enhancement.training import DataPrediction, Enhancing, ScoreMatching, StormTraining
from fewstep_audio.files import AudioError
from fewstep_audio.spectrogram import ComplexSpectrogram

FRONT = ComplexSpectrogram(n_fft=62, hop=16, factor=0.25)
ROOT2 = math.sqrt(2)
OU, SB = OUVE(sigma_min=0.05 / ROOT2, sigma_max=0.5 / ROOT2), SBVE(c=0.4 / 2)


def speech(*shape, seed=0):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(n=400):
    clean = speech(3, n)
    return {"clean": clean, "noisy": clean + 0.5 * speech(3, n, seed=1)}


def unet(*conditions):
    """Without zero layers."""
    torch.manual_seed(len(conditions))
    net = SpectrogramUNet(conditions, width=8, mults=(1, 1), blocks=1)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def predictor():
    return Enhancer(Denoiser(unet(), SB, Residual()), DDIM(), Uniform(), 1, FRONT, 8000)


def storm(names=("noisy", "denoised")):
    denoiser = Denoiser(unet(*names), OU, AnchoredPrecondition(0.1))
    solver, grid = MeanAtEnd(EulerMaruyama()), ThenClean(Uniform(end=0.03))
    return Storm(predictor(), denoiser, solver, grid, 4, FRONT, 8000).double()


class Fixed(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.out = nn.Parameter(out)

    def forward(self, x, t, noisy):
        return self.out


# --- objectives ----------------------------------------------------------------------------------------------------


def of_fixed(prediction, path, objective, out, seed=0):
    """(the loss of a network that always outputs `out`, x0, what it drew: t and eps, data)."""
    model = Enhancer(Denoiser(Fixed(out), path, prediction), DDIM(), Uniform(), 1, FRONT, 8000)
    trainer, data = Enhancing(model, 1, objective, times=BetweenTimes(0.03, 1.0)), batch()
    torch.manual_seed(seed)
    loss = trainer.denoising(model, model.prepare(data), data)
    torch.manual_seed(seed)
    t = trainer.times(3, path)
    x0 = model.prepare(data).x0
    return loss, x0, t, torch.randn_like(x0), data


def test_the_score_loss_is_the_published_one():
    """1/2 |s_t score + z|^2 in complex numbers, z of variance 1 and s_t of the paper; the mean over the bins for their sum."""
    out = speech(1, 2, 32, 26, seed=5)
    loss, _, t, eps, _ = of_fixed(Score(), OU, ScoreMatching(), out)
    s = OU.schedule(t)[2].reshape(-1, 1, 1)
    z = torch.complex(eps[:, 0], eps[:, 1]) / ROOT2
    score = torch.complex(out[:, 0], out[:, 1]) / 2  # -z/s_paper where the network outputs -eps/s, s_paper = sqrt 2 s
    by_hand = 0.5 * (ROOT2 * s * score + z).abs().square().mean((1, 2))
    torch.testing.assert_close(loss, by_hand, rtol=1e-10, atol=0)


def test_the_data_loss_is_the_published_one():
    """Mean over bins of 1/2 |x_hat - x0|^2 plus .001 times the L1 distance of waves at the network's level."""
    out = 0.1 * speech(1, 2, 32, 26, seed=5)
    loss, x0, _, _, data = of_fixed(Residual(), SB, DataPrediction(), out)
    model = predictor()
    y = model.prepare(data).y
    x_hat = y - out
    bins = torch.complex(*(x_hat - x0).unbind(1)).abs().square()
    wave = model.decode(x_hat, 400) - data["clean"] / peak(data["noisy"])
    torch.testing.assert_close(loss, 0.5 * bins.mean((1, 2)) + 0.001 * wave.abs().mean(1), rtol=1e-10, atol=0)


@pytest.mark.parametrize("objective", [DataPrediction(), ScoreMatching(), None], ids=str)
def test_the_true_answer_has_no_loss(objective):
    data, truth = batch(), {}
    path, prediction = (SB, Residual()) if isinstance(objective, DataPrediction) else (OU, Score())

    class Exact(nn.Module):
        def forward(self, x, t, noisy):
            return truth["out"]

    model = Enhancer(Denoiser(Exact(), path, prediction), DDIM(), Uniform(), 1, FRONT, 8000)
    x0, cond, y = model.prepare(data)
    trainer = Enhancing(nn.ModuleList([model, nn.Linear(1, 1)])[0], 1, objective, times=BetweenTimes(0.03, 1.0))
    torch.manual_seed(3)
    t = trainer.times(3, path)
    truth["out"] = prediction.target(x0, torch.randn_like(x0), path.coeffs(t, x0), y)
    torch.manual_seed(3)
    assert trainer.denoising(model, model.prepare(data), data).max() < 1e-6


def test_the_predictive_baseline_is_the_bridge_at_its_noisy_end():
    """Trained at t = 1 alone it sees (y, y, 1), which is what its one step asks."""
    model, data = predictor(), batch()
    model.double()
    seen = []
    model.denoiser.net.register_forward_pre_hook(lambda m, args: seen.append(args))
    trainer = Enhancing(model, 1, DataPrediction(), times=GridTimes(1))
    trainer.loss(data)
    model(data["noisy"])
    (x, t), (x1, t1) = seen
    torch.testing.assert_close(x, x1, rtol=0, atol=1e-12)
    assert torch.equal(t, torch.ones(3, dtype=t.dtype))
    assert torch.equal(t1.double(), t.double())


# --- StoRM ---------------------------------------------------------------------------------------------------------


def test_the_second_stage_is_anchored_at_the_first():
    model, data = storm(), batch()
    x0, cond, y = model.prepare(data)
    noisy = model.encode(data["noisy"] / peak(data["noisy"]))
    predicted = noisy - model.predictor.denoiser.net(noisy, torch.ones(3, dtype=torch.float64), noisy=noisy)
    torch.testing.assert_close(y, predicted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(cond["denoised"], predicted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(cond["noisy"], noisy, rtol=0, atol=0)
    assert (predicted - noisy).abs().max() > 1e-3


@pytest.mark.parametrize("names", [("noisy",), ("denoised",), ("noisy", "denoised")])
def test_the_loss_of_the_second_stage_reaches_the_first(names):
    """Through the anchor alone, or also through the condition; with alpha = 1 there is no other way."""
    model, data = storm(names), batch()
    trainer = StormTraining(model, 1, alpha=1.0, times=BetweenTimes(0.03, 1.0))
    torch.manual_seed(0)
    terms = trainer.loss(data)
    assert terms["predictive"] == 0
    terms["denoising"].backward()
    grads = [p.grad for p in model.predictor.parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() for g in grads)
    assert max(g.abs().max() for g in grads) > 1e-6
    assert all(p.grad is not None and p.grad.any() for p in model.denoiser.parameters())


def test_the_gradient_through_the_anchor_is_that_of_finite_differences():
    model, data = storm(), batch()
    trainer = StormTraining(model, 1, alpha=1.0, times=BetweenTimes(0.03, 1.0))
    bias = model.predictor.denoiser.net.last.bias

    def loss():
        torch.manual_seed(0)
        return trainer.loss(data)["denoising"]

    loss().backward()
    with torch.no_grad():
        bias[0] += 1e-5
        above = loss()
        bias[0] -= 2e-5
        below = loss()
    assert bias.grad[0].item() == pytest.approx((above - below).item() / 2e-5, rel=1e-5)


def test_both_terms_have_half_of_the_weight():
    model, data = storm(), batch()
    torch.manual_seed(0)
    terms = StormTraining(model, 1).loss(data)
    torch.manual_seed(0)
    second = StormTraining(model, 1, alpha=1.0).loss(data)["denoising"]
    torch.testing.assert_close(terms["denoising"], second / 2)
    x0, _, y = model.prepare(data)
    bins = torch.complex(*(y - x0).unbind(1)).abs().square()
    torch.testing.assert_close(terms["predictive"], 0.5 * (0.5 * bins.mean()))
    with pytest.raises(ValueError, match=r"in \[0, 1\], not 1.5"):
        StormTraining(model, 1, alpha=1.5)


def test_storm_samples_by_the_predictor_step_alone_from_the_prediction():
    """One evaluation of D, then one of the score network per step."""
    model, calls = storm(), []
    model.predictor.denoiser.net.register_forward_hook(lambda *_: calls.append("D"))
    model.denoiser.net.register_forward_hook(lambda *_: calls.append("score"))
    with torch.no_grad():
        model(speech(1, 300))
    assert calls == ["D", *["score"] * 4]
    assert model.evaluations() == 5


def test_an_artifact_holds_both_stages(tmp_path):
    model = storm().eval()
    again = load(save(model, tmp_path / "storm"))
    noisy = speech(1, 300)
    with torch.no_grad():
        assert torch.equal(again(noisy, seed=1), model(noisy, seed=1))
    assert isinstance(again.predictor, Enhancer)


def test_stages_with_different_front_ends_are_refused():
    denoiser = Denoiser(unet("noisy", "denoised"), OU, AnchoredPrecondition(0.1))
    with pytest.raises(AudioError, match=r"the predictor works on .*n_fft=62.* at 8000 Hz, .*n_fft=126"):
        Storm(predictor(), denoiser, DDIM(), Uniform(), 4, ComplexSpectrogram(126, 32), 8000)
    with pytest.raises(AudioError, match="at 16000 Hz"):
        Storm(predictor(), denoiser, DDIM(), Uniform(), 4, FRONT, 16000)
