"""Compressed complex spectrograms: exact inverse, finite gradients at zero (P6)."""

import pytest
import torch

from fewstep_audio.files import AudioError
from fewstep_audio.spectrogram import ComplexSpectrogram

FRONTS = [ComplexSpectrogram(), ComplexSpectrogram(1534, 384, 0.065, 0.667), ComplexSpectrogram(254, 64, 0.25, 0.5)]


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_expand_inverts_compress_also_at_zero(front, dtype):
    gen = torch.Generator().manual_seed(0)
    spec = torch.randn(2, 2, 20, 30, generator=gen, dtype=dtype)
    spec *= 10 ** (6 * torch.rand(2, 1, 20, 30, generator=gen, dtype=dtype) - 4)
    spec[:, :, 3] = 0
    back = front.expand(front.compress(spec))
    assert ((back - spec).abs() <= 1e-5 * spec.norm(dim=1, keepdim=True)).all()


@pytest.mark.parametrize("front", FRONTS)
def test_compress_is_the_polar_form(front):
    spec = torch.randn(1, 2, 8, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = torch.complex(spec[:, 0], spec[:, 1])
    polar = front.factor * z.abs() ** front.exponent * torch.exp(1j * z.angle())
    found = front.compress(spec)
    assert (found - torch.stack([polar.real, polar.imag], 1)).abs().max() < 1e-12


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("samples", [1, 63, 255, 256, 1000, 32640, 32641])
def test_wave_to_spectrogram_and_back_is_the_identity(front, samples):
    wave = torch.randn(2, samples, generator=torch.Generator().manual_seed(samples))
    spec = front.forward(wave)
    padded = max(samples, front.n_fft // 2 + 1)
    assert spec.shape == (2, 2, front.n_fft // 2 + 1, padded // front.hop + 1)
    back = front.inverse(spec, samples)
    assert back.shape == wave.shape
    assert (back - wave).abs().max() < 1e-5 * wave.abs().max() + 1e-5


def test_the_published_crop_has_256_bins_and_256_frames():
    assert FRONTS[0].forward(torch.ones(1, (256 - 1) * 128)).shape == (1, 2, 256, 256)


@pytest.mark.parametrize("front", FRONTS)
def test_gradients_are_finite_at_silence(front):
    wave = torch.zeros(1, 4000, requires_grad=True)
    front.inverse(front.forward(wave), 4000).sum().backward()
    assert wave.grad.isfinite().all()


def test_bad_input_is_named():
    with pytest.raises(AudioError, match="at least one sample"):
        FRONTS[0].forward(torch.zeros(1, 0))
    with pytest.raises(ValueError, match="exponent 0;"):
        ComplexSpectrogram(exponent=0)
