"""The Wiener baseline: it takes stationary noise from around a tone and leaves clean sound alone."""

import pytest
import torch

from fewstep_audio.enhancement.wiener import wiener


def bursts():
    """(1, 16000): a tone of half the time, silence of the other half."""
    t = torch.arange(16000, dtype=torch.float64) / 8000
    return ((2 * torch.pi * 700 * t).sin() * ((t * 4) % 2 < 1))[None]


@pytest.mark.parametrize("snr", [0.0, 10.0])
def test_white_noise_goes_down(snr):
    clean = bursts()
    noise = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise *= (clean.square().mean() / noise.square().mean() * 10 ** (-snr / 10)).sqrt()
    gain = noise.square().mean() / (wiener(clean + noise) - clean).square().mean()
    assert 10 * gain.log10() > 8


def test_clean_sound_with_pauses_stays():
    torch.testing.assert_close(wiener(bursts()), bursts(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [1, 100, 255, 1000])
def test_any_length(n):
    assert wiener(torch.ones(2, n)).shape == (2, n)
    assert wiener(torch.zeros(2, n)).abs().max() == 0
