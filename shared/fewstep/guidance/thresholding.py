"""Thresholding keeps x0 in the range of the data: denoiser in, denoiser out. No further NFE.

    static    x0' = clamp(x0, -limit, limit)
    dynamic   x0' = clamp(x0, -m, m)/m,   m = max(quantile of |x0| over the sample, max_val)      (Imagen, arXiv:2205.11487)
    eps' = eps + (a/s)(x0 - x0')          so that x_t = a x0' + b y + s eps' still

Large guidance scales push x0 out of range; the clip belongs after guidance: Thresholding(CFG(...), DynamicThreshold()).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise
from fewstep.estimate import Estimate
from fewstep.guidance.guide import Model
from fewstep.guidance.rule import forward_prepare
from fewstep.paths import Path, expand

# x0 -> x0', (B, ...) both.
Clip = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StaticThreshold:
    """Into [-limit, limit]."""

    limit: float = 1.0

    def __call__(self, x0: Tensor) -> Tensor:
        return x0.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class DynamicThreshold:
    """Into [-1, 1]. Like the official DPM-Solver code it divides by m also where m is max_val, so max_val belongs at 1.

    ratio: the quantile, over all elements of a sample. max_val: the least m.
    """

    ratio: float = 0.995
    max_val: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise ValueError(f"the ratio of a dynamic threshold is a quantile in [0, 1], not {self.ratio}")

    def __call__(self, x0: Tensor) -> Tensor:
        m = expand(quantile(x0.abs().flatten(1), self.ratio).clamp(min=self.max_val), x0)
        return x0.clamp(-m, m) / m


def quantile(v: Tensor, q: float) -> Tensor:
    """The q quantile of each row of v: (B, N) -> (B,), linear between order statistics; torch's own stops at 2^24 elements."""
    at = q * (v.shape[1] - 1)
    low = int(at)
    below = v.kthvalue(low + 1, 1).values
    return below if at == low else torch.lerp(below, v.kthvalue(low + 2, 1).values, at - low)


class Thresholding:
    """A model whose estimates are clipped.

    Args:
        denoiser: the model, guided or not.
        clip: `StaticThreshold`, `DynamicThreshold`, or any x0 -> x0.
    """

    def __init__(self, denoiser: Model, clip: Clip) -> None:
        self.denoiser, self.clip = denoiser, clip

    @property
    def path(self) -> Path:
        """The model's path."""
        return self.denoiser.path

    def bind(self, cond: Cond | None = None, y: Tensor | None = None) -> Denoise:
        """The clipped callable (x, t) -> Estimate."""
        return Thresholded(self.denoiser.bind(cond, y), self.clip, self.path)


class Thresholded:
    """A bound denoiser whose estimates are clipped; see `Thresholding`."""

    def __init__(self, denoise: Denoise, clip: Clip, path: Path) -> None:
        self.denoise, self.clip, self.path = denoise, clip, path

    def prepare(self, times: tuple[float, ...], x: Tensor) -> None:
        """Pass the grid on."""
        forward_prepare(self.denoise, times, x)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        seen = self.denoise(x, t)
        ratio = expand(signal_ratio(self.path, t), x) if isinstance(t, Tensor) else _signal_ratio(self.path, t)
        clipped = Estimate(lambda: self.clip(seen.x0), lambda: seen.eps + ratio * (seen.x0 - clipped.x0))
        return clipped


def signal_ratio(path: Path, t: Tensor) -> Tensor:
    """a/s, elementwise; 0 at s = 0, where eps is not determined by the state and stays as it is."""
    a, _, s = path.schedule(t.double())
    return torch.where(s == 0, 0.0, a / s)


def _signal_ratio(path: Path, t: float) -> float:
    a, _, s = path.levels(t)
    return a / s if s else 0.0
