"""Synthetic rooms for dereverberation: exponentially decaying noise after the direct sound (Polack's model).

    h[0] = 1,    h[n] = A g[n] 10^(-3 n / (T60 rate)) for n >= gap rate, up to T60;    g ~ N(0, 1)

so that the energy of the tail falls by 60 dB in T60 seconds. A puts the tail's energy `ratio` dB below the direct sound. Clean speech is
the direct sound, so both are aligned and equally loud.
"""

import torch
import torchaudio.functional as AF
from torch import Tensor

from fewstep_audio.data.degradation import Degradation
from fewstep_audio.data.recordings import Recordings


def room(
    rate: int, t60: float, ratio: float = 0.0, gap: float = 0.002, generator: torch.Generator | None = None
) -> Tensor:
    """An impulse response h: (round(t60 rate),).

    Args:
        rate: samples per second.
        t60: seconds in which the tail's energy falls by 60 dB; longer than the gap.
        ratio: direct-to-reverberant energy ratio in dB.
        gap: seconds between the direct sound and the first reflection, at least one sample.
    Raises:
        ValueError: no sample of the tail between gap and t60.
    """
    n, first = torch.arange(round(t60 * rate)), max(round(gap * rate), 1)
    if len(n) <= first:
        raise ValueError(
            f"T60 of {t60:g} s and a gap of {gap:g} s leave no tail at {rate} Hz; allowed: T60 above the gap"
        )
    tail = torch.randn(len(n), generator=generator) * 10 ** (-3 * n / (t60 * rate))
    tail[:first] = 0
    tail *= (10 ** (-ratio / 10) / tail.square().sum()).sqrt()
    tail[0] = 1
    return tail


def reverberant(clean: Tensor, h: Tensor) -> Tensor:
    """clean (..., N) in the room h (L,): their convolution, cut to N."""
    return AF.fftconvolve(clean, h.to(clean).expand(*clean.shape[:-1], -1))[..., : clean.shape[-1]]


def decay_time(h: Tensor, rate: int, upper: float = -5.0, lower: float = -25.0) -> float:
    """T60 of an impulse response (L,) in seconds: the line through Schroeder's backward integral between two levels, made 60 dB long.

    L(n) = 10 log10 (sum_{m >= n} h[m]^2 / sum h^2)  (ISO 3382: from -5 dB on, so without the direct sound)
    """
    energy = h.double().square().flip(0).cumsum(0).flip(0)
    level = 10 * (energy / energy[0]).log10()
    n = torch.nonzero((level <= upper) & (level >= lower)).flatten().double()
    slope = torch.linalg.lstsq(torch.stack([n, torch.ones_like(n)], 1), level[n.long()][:, None]).solution[0, 0]
    return -60 / (slope.item() * rate)


class Reverberation(Degradation):
    """Clean speech in a room of its own per crop, T60 and direct-to-reverberant ratio drawn uniformly.

    Args:
        shortest, longest: bounds of T60 in seconds.
        low, high: bounds of the ratio in dB.
        gap: seconds until the first reflection.
    """

    def __init__(
        self, shortest: float = 0.2, longest: float = 1.0, low: float = -5.0, high: float = 5.0, gap: float = 0.002
    ) -> None:
        if not gap < shortest <= longest or low > high:
            raise ValueError(
                f"T60 from {shortest} to {longest} s, ratio from {low} to {high} dB; allowed: gap < shortest <= longest, low <= high"
            )
        self.shortest, self.longest, self.low, self.high, self.gap = shortest, longest, low, high, gap

    def __call__(self, clean: Tensor, recordings: Recordings, index: int, generator: torch.Generator) -> Tensor:
        share = torch.rand(2, generator=generator)
        t60 = self.shortest + (self.longest - self.shortest) * float(share[0])
        ratio = self.low + (self.high - self.low) * float(share[1])
        return reverberant(clean, room(recordings.rate, t60, ratio, self.gap, generator))
