"""What states a vocoder's flow runs over, and what the mel says of their size beforehand.

    wave       x = w,  std = scale max((e - low) / (high - low), .1) repeated hop times,  e_f = sqrt(sum_bands mel_f)     (PeriodWave, arXiv:2408.07547)
    mdct       x = MDCT(w),  std = r (S_hat / (r sqrt(pi/4 sum w^2)))^p                                                     (SpecFlow)
               S_hat(f) = sum_m W_mf v_m / sum_m W_mf,  v_m = mel_m / sum_f W_mf: the magnitude at f that the bands say

States are held as x' = x / std, whose noise is white (fewstep/paths/shaped.py, `Diagonal`): training, solvers and distillation see nothing else.
e ranges from low to high over the training set, see `energy_range`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fewstep.paths.shaped import Diagonal
from fewstep_audio.mels import Mel
from fewstep_audio.vocoder.mdct import at_coefficients, imdct, mdct


@dataclass(frozen=True)
class Space(ABC):
    """States of utterances with T frames of mel; `linear` below is the mel without its logarithm, (B, bands, T)."""

    extra: ClassVar[int] = 0
    """Frames of a state beyond one per hop."""

    @abstractmethod
    def align(self, mel: Mel, frames: Tensor) -> Tensor:
        """Mel frames (B, bands, T) as one for each frame of the state."""

    @abstractmethod
    def conditions(self, mel: Mel, linear: Tensor) -> dict[str, Tensor]:
        """What the network is told beside the mel: std (B, 1, T), how loud frames are, and what else the space has."""

    @abstractmethod
    def shaper(self, mel: Mel, linear: Tensor) -> Diagonal:
        """The prior's standard deviations, broadcast against states."""

    @abstractmethod
    def encode(self, mel: Mel, wave: Tensor) -> Tensor:
        """(B, N) -> the state before it is divided by std."""

    @abstractmethod
    def decode(self, x: Tensor, length: int) -> Tensor:
        """A state times std -> (B, length)."""

    @abstractmethod
    def from_frames(self, noise: Tensor) -> Tensor:
        """(B, T, hop) -> a state: a frame has as many numbers as samples."""


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

    def conditions(self, mel: Mel, linear: Tensor) -> dict[str, Tensor]:
        return {"std": self.level(linear)}

    def level(self, linear: Tensor) -> Tensor:
        """(B, 1, T)."""
        return ((energy(linear) - self.low) / (self.high - self.low)).clamp_min(self.floor)[:, None]

    def shaper(self, mel: Mel, linear: Tensor) -> Diagonal:
        return Diagonal(self.scale * self.level(linear)[:, 0].repeat_interleave(mel.hop, 1))

    def encode(self, mel: Mel, wave: Tensor) -> Tensor:
        return wave

    def decode(self, x: Tensor, length: int) -> Tensor:
        return x[:, :length]

    def from_frames(self, noise: Tensor) -> Tensor:
        return noise.flatten(1)


@dataclass(frozen=True)
class MDCTSpace(Space):
    """MDCT coefficients (B, hop, T + 1), frames centred.

    Args:
        power: how far the prior follows the mel. 1: states of unit variance everywhere; below, more noise than the mel asks for where it is quiet,
            so that what is loud comes first and counts more.
        reference: the deviation that is the same at all powers: about that of the whole training set.
    """

    extra = 1

    power: float = 0.75
    reference: float = 0.03

    def align(self, mel: Mel, frames: Tensor) -> Tensor:
        """Presets whose frames stand half a hop later, between two of the transform's: the means of neighbours."""
        if mel.framing == "centre":
            return frames
        around = pad(frames, (1, 1), "replicate")
        return (around[:, :, 1:] + around[:, :, :-1]) / 2

    def conditions(self, mel: Mel, linear: Tensor) -> dict[str, Tensor]:
        level = energy(linear).clamp_min(1e-5).log10()[:, None]
        return {"std": level, "envelope": self.envelope(mel, linear)}

    def envelope(self, mel: Mel, linear: Tensor) -> Tensor:
        """The prior's deviation at the bins of the mel's STFT, (B, F, T)."""
        weights = mel.matrix.to(linear)  # (bands, F)
        mean = linear / weights.sum(1).clamp_min(1e-12)[:, None]
        covered = weights.sum(0)
        magnitude = torch.einsum("mf,bmt->bft", weights, mean) / covered.clamp_min(1e-12)[:, None]
        # Bins that no band covers (0 Hz, above the highest) are as large as the nearest that one does.
        bins = torch.arange(len(covered), device=linear.device)
        known = bins[covered > 1e-6 * covered.max()]
        nearest = known[(bins[:, None] - known).abs().argmin(1)]
        # Of noise with deviation 1 the STFT's mean magnitude is sqrt(pi/4 sum w^2), w the Hann window of the mel.
        noise = (math.pi / 4 * 3 / 8 * mel.win) ** 0.5
        return self.reference * (magnitude[:, nearest] / (noise * self.reference)) ** self.power

    def shaper(self, mel: Mel, linear: Tensor) -> Diagonal:
        return Diagonal(at_coefficients(self.envelope(mel, linear), mel.hop))

    def encode(self, mel: Mel, wave: Tensor) -> Tensor:
        return mdct(wave, mel.hop)

    def decode(self, x: Tensor, length: int) -> Tensor:
        return imdct(x, length)

    def from_frames(self, noise: Tensor) -> Tensor:
        return noise.mT


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
