"""Noise to add to clean speech: white, coloured, babble; mixed at an exact signal-to-noise ratio.

noisy = clean + g noise,   g = sqrt(sum clean^2 / sum noise^2 * 10^(-SNR / 10))
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fewstep_audio.data.recordings import Recordings, another, fill


class Noise(ABC):
    """A kind of noise."""

    @abstractmethod
    def draw(self, samples: int, recordings: Recordings, index: int, generator: torch.Generator) -> Tensor:
        """(samples,) of any level; `recordings` are those that the clean speech, number `index`, comes from."""


class White(Noise):
    """Independent normal samples."""

    def draw(self, samples: int, recordings: Recordings, index: int, generator: torch.Generator) -> Tensor:
        return torch.randn(samples, generator=generator)


class Coloured(Noise):
    """Normal noise whose amplitude spectrum falls as f^-slope (power as f^-2 slope), the slope drawn uniformly; 0.5 is pink.

    Args:
        flattest, steepest: bounds of the slope.
    """

    def __init__(self, flattest: float = 0.4, steepest: float = 0.9) -> None:
        self.flattest, self.steepest = flattest, steepest

    def draw(self, samples: int, recordings: Recordings, index: int, generator: torch.Generator) -> Tensor:
        slope = self.flattest + (self.steepest - self.flattest) * torch.rand((), generator=generator)
        spectrum = torch.fft.rfft(torch.randn(samples, generator=generator))
        bins = torch.arange(len(spectrum)).clamp(min=1)
        shaped = spectrum * bins**-slope
        shaped[0] = 0  # no direct current
        return torch.fft.irfft(shaped, samples)


class Babble(Noise):
    """Several voices at once, each of unit power: recordings of the corpus one after the other, never the
    one that they are added to.

    Args:
        voices: at least 1.
    """

    def __init__(self, voices: int = 4) -> None:
        if voices < 1:
            raise ValueError(f"{voices} voices; allowed: at least 1")
        self.voices = voices

    def draw(self, samples: int, recordings: Recordings, index: int, generator: torch.Generator) -> Tensor:
        total = torch.zeros(samples)
        for _ in range(self.voices):
            voice = fill(recordings, another(recordings, index, generator), samples, generator, without=index)
            total += voice / voice.square().mean().sqrt()
        return total


def mix(clean: Tensor, noise: Tensor, snr: float) -> Tensor:
    """clean + g noise, (N,), at `snr` dB over the whole length.

    Raises:
        ValueError: other lengths, or one of them without power.
    """
    if clean.shape != noise.shape:
        raise ValueError(f"clean has shape {tuple(clean.shape)}, noise {tuple(noise.shape)}; allowed: equal shapes")
    powers = clean.double().square().sum(), noise.double().square().sum()
    if min(powers) == 0:
        raise ValueError("clean or noise has no power, so that there is no SNR; allowed: sound")
    return clean + (powers[0] / powers[1] * 10 ** (-snr / 10)).sqrt().to(clean) * noise
