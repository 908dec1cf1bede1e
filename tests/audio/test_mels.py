"""Mel presets against the definition frame by frame and against the libraries that define them (P1)."""

import dataclasses

import librosa
import numpy as np
import pytest
import torch
import torchaudio

from fewstep.artifacts import build, describe
from fewstep_audio.files import AudioError
from fewstep_audio.mels import PRESETS, Mel, _filters

NAMES = sorted(PRESETS)


def voice(samples, rate, seed=0):
    """Harmonics under a moving envelope, and a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / rate
    tones = sum(np.sin(2 * np.pi * 137 * k * t + rng.uniform(0, 6)) / k for k in range(1, 20))
    return 0.2 * tones * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t)) + 0.01 * rng.standard_normal(samples)


def mel_by_definition(mel, x):
    """One frame after the other, one bin after the other in float64; librosa's or torchaudio's own filters."""
    if mel.filters == "slaney":
        filters = librosa.filters.mel(sr=mel.rate, n_fft=mel.n_fft, n_mels=mel.bands, fmin=mel.low, fmax=mel.high)
    else:
        bins = mel.n_fft // 2 + 1
        filters = torchaudio.functional.melscale_fbanks(bins, mel.low, mel.high, mel.bands, mel.rate).T.numpy()
    edge = (mel.n_fft - mel.hop) // 2 if mel.framing == "same" else mel.n_fft // 2
    x = np.concatenate([x[1 : edge + 1][::-1], x, x[-edge - 1 : -1][::-1]])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(mel.win) / mel.win)
    turn = np.exp(-2j * np.pi * np.outer(np.arange(mel.n_fft // 2 + 1), np.arange(mel.n_fft)) / mel.n_fft)
    frames = []
    for start in range(0, len(x) - mel.n_fft + 1, mel.hop):
        z = turn @ (window * x[start : start + mel.n_fft])
        filtered = filters.astype(np.float64) @ np.sqrt(z.real**2 + z.imag**2 + mel.eps)
        frames.append(np.maximum(filtered, mel.clamp))
    return (np.log if mel.log == "ln" else np.log10)(np.stack(frames, axis=1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_presets_are_their_definition(name, dtype, tolerance):
    mel = PRESETS[name]
    x = voice(20 * mel.hop + 77, mel.rate)
    found = mel(torch.from_numpy(x)[None].to(dtype))[0]
    expected = torch.from_numpy(mel_by_definition(mel, x))
    assert found.shape == expected.shape
    # in float32 the quietest bins carry the rounding of the loudest: relative to the linear values
    assert (found.double().exp() - expected.exp()).abs().max() <= tolerance * expected.exp().max()
    loud = expected > expected.max() - (4 if mel.log == "ln" else 2)
    assert (found.double() - expected).abs()[loud].max() <= tolerance * 3


@pytest.mark.parametrize("name", [n for n in NAMES if PRESETS[n].filters == "slaney"])
def test_slaney_filters_are_those_of_librosa_bit_for_bit(name):
    mel = PRESETS[name]
    expected = librosa.filters.mel(sr=mel.rate, n_fft=mel.n_fft, n_mels=mel.bands, fmin=mel.low, fmax=mel.high)
    assert np.array_equal(_filters(mel).numpy(), expected)


def test_vocos_is_torchaudio_bit_for_bit():
    mel = PRESETS["vocos_24k"]
    reference = torchaudio.transforms.MelSpectrogram(24000, 1024, hop_length=256, n_mels=100, power=1)
    x = torch.from_numpy(voice(24000, 24000)).float()[None]
    assert torch.equal(mel(x), reference(x).clamp(min=1e-7).log())


def test_hifigan_is_its_public_formula_bit_for_bit():
    mel = PRESETS["hifigan_22k"]
    x = torch.from_numpy(voice(22050, 22050)).float()[None]
    filters = torch.from_numpy(librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=8000))
    padded = torch.nn.functional.pad(x[None], (384, 384), mode="reflect")[0]
    z = torch.view_as_real(
        torch.stft(padded, 1024, 256, 1024, torch.hann_window(1024), center=False, return_complex=True)
    )
    assert torch.equal(mel(x), (filters @ (z.pow(2).sum(-1) + 1e-9).sqrt()).clamp(min=1e-5).log())


@pytest.mark.parametrize("name", NAMES)
def test_number_of_frames_also_of_clips_shorter_than_the_reflection(name):
    mel = PRESETS[name]
    for samples in (1, mel.hop - 1, mel.hop, mel.n_fft // 2, mel.n_fft // 2 + 1, 10 * mel.hop, 11 * mel.hop - 1):
        expected = samples // mel.hop + 1 if mel.framing == "centre" else max(samples // mel.hop, 1)
        out = mel(torch.ones(2, samples))
        assert out.shape == (2, mel.bands, expected) and mel.frames(samples) == expected
        assert out.isfinite().all()


def test_a_clip_shorter_than_the_reflection_is_one_followed_by_zeros():
    mel = PRESETS["hifigan_22k"]
    x = torch.from_numpy(voice(300, 22050)).float()[None]
    assert torch.equal(mel(x), mel(torch.nn.functional.pad(x, (0, 385 - 300)))[..., :1])


@pytest.mark.parametrize("name", NAMES)
def test_fingerprint_changes_with_every_parameter_and_with_nothing_else(name):
    mel = PRESETS[name]
    other = {
        "rate": mel.rate + 2000, "n_fft": mel.n_fft + 2 * mel.hop, "win": mel.win - 2, "hop": mel.hop // 2, "bands": mel.bands + 1,
        "low": 20, "high": mel.high - 1, "filters": "htk" if mel.filters == "slaney" else "slaney", "eps": mel.eps + 1e-10,
        "log": "ln" if mel.log == "log10" else "log10", "clamp": mel.clamp * 1.01,
        "framing": "same" if mel.framing == "centre" else "centre",
    }  # fmt: skip
    assert set(other) == {f.name for f in dataclasses.fields(Mel)}
    prints = {dataclasses.replace(mel, **{k: v}).fingerprint for k, v in other.items()}
    assert len(prints) == len(other) and mel.fingerprint not in prints
    assert mel.fingerprint == dataclasses.replace(mel).fingerprint
    assert len(mel.fingerprint) == 16 and int(mel.fingerprint, 16) >= 0


def test_fingerprints_of_the_presets_differ_and_check_names_both():
    assert len({m.fingerprint for m in PRESETS.values()}) == len(PRESETS)
    PRESETS["vocos_24k"].check(dataclasses.replace(PRESETS["vocos_24k"]), "here")
    with pytest.raises(
        AudioError, match="^voc/: mel hifigan_22k .* does not fit mel vocos_24k .*bands 80 / 100"
    ) as error:
        PRESETS["hifigan_22k"].check(PRESETS["vocos_24k"], "voc/")
    assert "\n" not in str(error.value)
    assert "custom (22050 Hz, 40 bands, hop 256)" in dataclasses.replace(PRESETS["hifigan_22k"], bands=40).name


def test_mels_are_differentiable_at_silence():
    for mel in PRESETS.values():
        x = torch.zeros(1, 4 * mel.n_fft, requires_grad=True)
        mel(x).sum().backward()
        assert x.grad.isfinite().all()


def test_artifacts_describe_and_rebuild_a_mel():
    assert build(describe(PRESETS["vocos_24k"])) == PRESETS["vocos_24k"]


@pytest.mark.parametrize(
    "change, words",
    [({"hop": 0}, "0 < hop"), ({"high": 20000}, "high <= 11025"), ({"log": "log2"}, "'log2'; allowed: ln, log10")],
)
def test_wrong_parameters_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(PRESETS["hifigan_22k"], **change)
    with pytest.raises(AudioError, match="at least one sample"):
        PRESETS["hifigan_22k"](torch.zeros(1, 0))
