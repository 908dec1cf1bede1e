"""What states a vocoder's flow runs over, and what the mel says of their size beforehand.

    wave       x = w,  std = scale max((e - low) / (high - low), .1) repeated hop times,  e_f = sqrt(sum_bands mel_f)     (PeriodWave, arXiv:2408.07547)
    spectrum   x = X = c |S|^e exp(i angle S), two channels,  std = c S_hat^e / sqrt 2                                     (SpecFlow)
               S_hat(f) = sum_m W_mf v_m / sum_m W_mf,  v_m = mel_m / sum_f W_mf: the magnitude at f that the bands say

States are held as x' = x / std, whose noise is white (fewstep/paths/shaped.py, `Diagonal`): training, solvers and distillation see nothing else.
e ranges from low to high over the training set, see `energy_range`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fewstep.paths.shaped import Diagonal
from fewstep_audio.mels import Mel
from fewstep_audio.spectrogram import ComplexSpectrogram


@dataclass(frozen=True)
class Space(ABC):
    """States of utterances with T frames of mel; `linear` below is the mel without its logarithm, (B, bands, T)."""

    extra: ClassVar[int] = 0
    """Frames of a state beyond one per hop."""

    @abstractmethod
    def align(self, mel: Mel, frames: Tensor) -> Tensor:
        """Mel frames (B, bands, T) as one for each frame of the state."""

    @abstractmethod
    def level(self, linear: Tensor) -> Tensor:
        """How loud frames are, as the network is told: (B, 1, T)."""

    @abstractmethod
    def shaper(self, mel: Mel, linear: Tensor) -> Diagonal:
        """The prior's standard deviations, broadcast against states."""

    @abstractmethod
    def encode(self, wave: Tensor) -> Tensor:
        """(B, N) -> the state before it is divided by std."""

    @abstractmethod
    def decode(self, x: Tensor, length: int) -> Tensor:
        """A state times std -> (B, length)."""

    @abstractmethod
    def from_frames(self, noise: Tensor) -> Tensor:
        """(B, T, numbers of a frame) -> a state."""

    @abstractmethod
    def numbers(self, mel: Mel) -> int:
        """How many a frame has."""


@dataclass(frozen=True)
class WaveSpace(Space):
    """Waves (B, T hop).

    Args:
        low, high: energies of the quietest and the loudest frame of the training set; those of LibriTTS at 24 kHz unless given.
        scale: of the noise, .5 at 24 kHz and .25 at 22.05 kHz in the paper; the network's prediction has to be `ScaledU(scale)`.
        floor: the smallest level.
    Raises:
        ValueError: low >= high.
    """

    low: float = 0.031622782
    high: float = 9.124346
    scale: float = 0.5
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"energies range from low to high, low < high, not {self.low} and {self.high}")

    def align(self, mel: Mel, frames: Tensor) -> Tensor:
        """Without the frame beyond the last whole hop that centred presets have."""
        return frames if mel.framing == "same" else frames[:, :, :-1]

    def level(self, linear: Tensor) -> Tensor:
        return ((energy(linear) - self.low) / (self.high - self.low)).clamp_min(self.floor)[:, None]

    def shaper(self, mel: Mel, linear: Tensor) -> Diagonal:
        return Diagonal(self.scale * self.level(linear)[:, 0].repeat_interleave(mel.hop, 1))

    def encode(self, wave: Tensor) -> Tensor:
        return wave

    def decode(self, x: Tensor, length: int) -> Tensor:
        return x[:, :length]

    def from_frames(self, noise: Tensor) -> Tensor:
        return noise.flatten(1)

    def numbers(self, mel: Mel) -> int:
        return mel.hop


@dataclass(frozen=True)
class SpectrumSpace(Space):
    """Compressed complex spectrograms (B, 2, F, T), frames centred.

    Args:
        spectrogram: of the mel's n_fft and hop.
    """

    extra = 1

    spectrogram: ComplexSpectrogram

    def align(self, mel: Mel, frames: Tensor) -> Tensor:
        """Presets whose frames stand half a hop later, between two of the spectrogram's: the means of neighbours."""
        if mel.framing == "centre":
            return frames
        around = pad(frames, (1, 1), "replicate")
        return (around[:, :, 1:] + around[:, :, :-1]) / 2

    def level(self, linear: Tensor) -> Tensor:
        return energy(linear).clamp_min(1e-5).log10()[:, None]

    def shaper(self, mel: Mel, linear: Tensor) -> Diagonal:
        weights = mel.matrix.to(linear)  # (bands, F)
        mean = linear / weights.sum(1).clamp_min(1e-12)[:, None]
        covered = weights.sum(0)
        magnitude = torch.einsum("mf,bmt->bft", weights, mean) / covered.clamp_min(1e-12)[:, None]
        # Bins that no band covers (0 Hz, above the highest) are as large as the nearest that one does.
        bins = torch.arange(len(covered), device=linear.device)
        known = bins[covered > 1e-6 * covered.max()]
        nearest = known[(bins[:, None] - known).abs().argmin(1)]
        s = self.spectrogram
        return Diagonal(s.factor * magnitude[:, nearest, :][:, None] ** s.exponent / 2**0.5)

    def encode(self, wave: Tensor) -> Tensor:
        return self.spectrogram.forward(wave)

    def decode(self, x: Tensor, length: int) -> Tensor:
        return self.spectrogram.inverse(x, length)

    def from_frames(self, noise: Tensor) -> Tensor:
        return noise.unflatten(2, (2, -1)).permute(0, 2, 3, 1)

    def numbers(self, mel: Mel) -> int:
        return 2 * (self.spectrogram.n_fft // 2 + 1)


def linear(mel: Mel, frames: Tensor) -> Tensor:
    """Frames of a mel without their logarithm: filtered magnitudes."""
    return frames.exp() if mel.log == "ln" else 10**frames


def energy(linear: Tensor) -> Tensor:
    """sqrt of the sum over bands: (B, bands, T) -> (B, T)."""
    return linear.sum(1).sqrt()


def energy_range(mel: Mel, waves: list[Tensor]) -> tuple[float, float]:
    """(low, high) of `WaveSpace` over a training set: waves (N,) each at the mel's rate."""
    found = [energy(linear(mel, mel(w[None]))) for w in waves]
    return min(float(e.min()) for e in found), max(float(e.max()) for e in found)
