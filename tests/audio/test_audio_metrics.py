"""Scores of speech: exact values at known pairs, limits, invariances, agreement with libraries, and clips without a score (P18)."""

import math
import sys

import librosa
import numpy as np
import pytest
import torch
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from fewstep.metrics import frechet_distance
from fewstep_audio.mels import PRESETS
from fewstep_audio.metrics import (
    LogSpectral,
    MelCepstral,
    MultiResolutionStft,
    MultiScaleMel,
    Skipped,
    estoi,
    pesq,
    si_sdr,
    summary,
)


def voice(seconds=2.0, rate=16000, seed=0):
    """Syllables: harmonics under a moving envelope, with pauses and a little noise, (N,)."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    f0 = 120 + 20 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(f0) / rate
    tones = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 25))
    syllables = np.maximum(np.sin(2 * np.pi * 2.5 * t), 0)
    return torch.from_numpy(0.2 * tones * syllables + 1e-3 * rng.standard_normal(len(t))).float()


def noisy(x, snr, seed=1):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return x + noise * (x.square().sum() / noise.square().sum() * 10 ** (-snr / 10)).sqrt()


# --- ratios and listening scores ---------------------------------------------------------------------------------


def test_si_sdr_is_exact_for_orthogonal_noise_and_ignores_scale_but_not_the_mean():
    s = torch.tensor([1.0, 1.0, 1.0, 1.0]).double()
    n = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    assert si_sdr(s + 0.1 * n, s) == pytest.approx(20)
    for a, b in ((7, 1), (-1e-3, 1), (1, 1e-4)):
        assert si_sdr(a * (s + 0.1 * n), b * s) == pytest.approx(20)
    x = voice()
    for scale in (1e-4, 1, 1e3):
        assert si_sdr(scale * noisy(x, 5), x) == pytest.approx(float(si_sdr(noisy(x, 5), x)), abs=1e-3)
    # zero-mean would call a constant offset perfect
    assert si_sdr(n + 0.5, n) == pytest.approx(10 * math.log10(1 / 0.25))
    assert si_sdr(x, x) > 120 and si_sdr(torch.zeros_like(x), torch.zeros_like(x)).isnan()


def test_si_sdr_is_that_of_torchmetrics():
    x = torch.stack([voice(seed=s) for s in range(3)])
    y = torch.stack([noisy(v, snr) for v, snr in zip(x, (-5, 0, 15), strict=True)])
    assert torch.allclose(si_sdr(y, x), scale_invariant_signal_distortion_ratio(y, x, zero_mean=False), atol=1e-4)


@pytest.mark.parametrize("band, best", [("wb", 4.644), ("nb", 4.549)])
def test_pesq_of_itself_is_the_best_there_is_and_noise_lowers_it(band, best):
    x = voice(3)
    assert pesq(x, x, 16000, band) == pytest.approx(best, abs=1e-3)
    scores = [pesq(noisy(x, snr), x, 16000, band) for snr in (20, 5)]
    assert best > scores[0] > scores[1] > 1


def test_pesq_needs_one_of_two_bands_and_equal_lengths():
    x = voice()
    with pytest.raises(ValueError, match="'fb'; allowed: nb, wb"):
        pesq(x, x, 16000, "fb")
    with pytest.raises(ValueError, match=r"\(31999,\) and \(32000,\)"):
        pesq(x[1:], x, 16000, "wb")


def test_estoi_lies_between_noise_and_one():
    x = voice(3)
    assert estoi(x, x, 16000) == pytest.approx(1, abs=1e-6)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    scores = [estoi(noisy(x, 10), x, 16000), estoi(noisy(x, -5), x, 16000), estoi(noise, x, 16000)]
    assert 1 > scores[0] > scores[1] > scores[2] >= 0


@pytest.mark.parametrize("score", [lambda x, s, r: pesq(x, s, r, "wb"), lambda x, s, r: pesq(x, s, r, "nb"), estoi])
def test_silence_and_short_clips_are_skipped_with_the_reason(score):
    x, silence = voice(), torch.zeros(32000)
    for pair in ((silence, silence), (silence, x), (x, silence)):
        assert score(*pair, 16000) == Skipped("silence")
    for n in (1, 100, 1000):
        found = score(x[4000 : 4000 + n], x[4000 : 4000 + n], 16000)
        assert isinstance(found, Skipped) and "short" in found.reason
        assert str(found).startswith("skipped: ")
    # a click in silence: long enough, but hardly any speech
    click = torch.zeros(32000)
    click[16000:16050] = 0.5
    found = score(click, click, 16000)
    assert isinstance(found, Skipped | float) and (not isinstance(found, float) or found > 0.9)


def test_summaries_count_what_was_skipped():
    out = summary([1.0, Skipped("silence"), 2.0, 3.0])
    assert (out.mean, out.count, out.skipped) == (2.0, 3, 1)
    assert out.error == pytest.approx(1 / 3**0.5)
    assert math.isnan(summary([Skipped("silence")]).mean)


@pytest.mark.parametrize(
    "package, score", [("pesq", lambda x: pesq(x, x, 8000, "nb")), ("pystoi", lambda x: estoi(x, x, 8000))]
)
def test_a_missing_package_is_named_with_the_extra(monkeypatch, package, score):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"needs the package {package}: pip install 'fewstep\[audio-metrics\]'$"
    ):
        score(torch.ones(8000))


# --- distances ---------------------------------------------------------------------------------------------------

DISTANCES = [MultiScaleMel(16000), MultiResolutionStft(), LogSpectral(), MelCepstral(PRESETS["bigvgan_24k"])]


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda d: type(d).__name__)
def test_distances_vanish_at_equality_grow_with_noise_and_are_per_item(distance):
    x = torch.stack([voice(1, seed=0), voice(1, seed=1)])
    assert torch.equal(distance(x, x), torch.zeros(2))
    near, far = (torch.stack([noisy(v, snr) for v in x]) for snr in (30, 0))
    assert (distance(near, x) > 0).all() and (distance(far, x) > 1.5 * distance(near, x)).all()
    mixed = torch.stack([x[0], far[1]])
    assert torch.allclose(distance(mixed, x), torch.stack([torch.tensor(0.0), distance(far, x)[1]]), atol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES[:2], ids=lambda d: type(d).__name__)
def test_training_distances_have_finite_gradients_at_silence(distance):
    x = torch.zeros(1, 8000, requires_grad=True)
    distance(x, voice(0.5)[None]).sum().backward()
    assert x.grad.isfinite().all()


def test_a_gain_is_its_decibels_in_log_spectral_distance_and_nothing_in_mcd():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 16000)))  # loud everywhere: no floor in play
    assert LogSpectral()(x / 2, x) == pytest.approx(20 * math.log10(2), abs=1e-9)
    assert MelCepstral(PRESETS["hifigan_22k"])(x / 2, x) < 1e-5
    assert MultiResolutionStft()(x / 2, x) == pytest.approx(0.5 + math.log(2), abs=1e-9)
    assert MultiScaleMel(16000)(x / 10, x) == pytest.approx(7, abs=1e-9)  # one decade at each of seven scales


def test_mcd_of_one_cosine_is_its_formula_and_with_all_coefficients_the_rms_in_decibels():
    bands = 80
    m = torch.arange(bands).double() + 0.5
    a = torch.randn(1, bands, 6, generator=torch.Generator().manual_seed(0)).double()
    for d, height in ((1, 0.3), (24, 0.5)):
        b = a + height * torch.cos(math.pi * d * m / bands)[None, :, None]
        expected = 10 / math.log(10) * math.sqrt(2) * height
        assert MelCepstral(PRESETS["hifigan_22k"]).of_mels(a, b) == pytest.approx(expected)
    beyond = a + torch.cos(math.pi * 25 * m / bands)[None, :, None]
    assert MelCepstral(PRESETS["hifigan_22k"]).of_mels(a, beyond) < 1e-12
    b = torch.randn(1, bands, 6, generator=torch.Generator().manual_seed(1)).double()
    apart = (b - a) - (b - a).mean(1, keepdim=True)
    rms = (20 / math.log(10) * apart.square().mean(1).sqrt()).mean()
    assert MelCepstral(PRESETS["hifigan_22k"], bands - 1).of_mels(a, b) == pytest.approx(float(rms))


def test_multi_scale_mel_is_a_sum_over_the_definition():
    x, y = (voice(0.2, seed=s).double() for s in (0, 1))
    total = 0.0
    for window, bands in zip((32, 64, 128, 256, 512, 1024, 2048), (5, 10, 20, 40, 80, 160, 320), strict=True):
        filters = librosa.filters.mel(sr=16000, n_fft=window, n_mels=bands, fmin=0, fmax=8000)
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        logs = []
        for v in (x, y):
            padded = np.pad(v.numpy(), window // 2, mode="reflect")
            frames = np.stack([padded[i : i + window] * hann for i in range(0, len(v) + 1, window // 4)])
            logs.append(np.log10(np.maximum(filters @ np.abs(np.fft.rfft(frames)).T, 1e-5)))
        total += np.abs(logs[0] - logs[1]).mean()
    assert MultiScaleMel(16000)(x[None], y[None]) == pytest.approx(total, rel=1e-6)


def test_frechet_distance_is_zero_at_equality_and_never_negative():
    a, b = (torch.randn(50, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9) and frechet_distance(a, b) > 0
