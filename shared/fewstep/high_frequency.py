"""Distances of the fine structure alone (HiPA, arXiv:2311.18158): a distance of what is left of both samples

    HighPass    of their Fourier components above a cut-off
    Edges       of their derivatives (Sobel's: central differences, smoothed by 1-2-1 across)

One-step students have the coarse structure from their initialisation and miss the rest. Signals are (B, C, T),
pictures (B, C, H, W), volumes (B, C, D, H, W). The paper has perceptual distances inside; its weights and masks are
not published.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distances import L1, Distance


@dataclass(frozen=True)
class HighPass(Distance):
    """weight * d(high(a), high(b)), where high drops the frequencies |f| < cutoff, in units of each axis' Nyquist."""

    cutoff: float = 0.25
    distance: Distance = L1()  # noqa: RUF009
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.cutoff < 1:
            raise ValueError(f"the cut-off is a share of Nyquist's frequency in [0, 1), not {self.cutoff}")

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.weight * self.distance(self.high(a), self.high(b))

    def high(self, x: Tensor) -> Tensor:
        """x: (B, C, ...) without its low frequencies."""
        axes = _axes(x)
        square = torch.zeros((), device=x.device)
        for k in axes:  # of |f|, shaped as the spectrum
            f = 2 * torch.fft.fftfreq(x.shape[k], device=x.device)
            square = square + f.square().reshape([-1 if j == k else 1 for j in range(x.ndim)])
        spectrum = torch.fft.fftn(x, dim=axes) * (square.sqrt() >= self.cutoff)
        return torch.fft.ifftn(spectrum, dim=axes).real


@dataclass(frozen=True)
class Edges(Distance):
    """weight * d of the derivatives along every axis, stacked as channels; at positions that have all neighbours."""

    distance: Distance = L1()  # noqa: RUF009
    weight: float = 1.0

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.weight * self.distance(self.edges(a), self.edges(b))

    def edges(self, x: Tensor) -> Tensor:
        """(B, C, n_1, ...) -> (B, axes C, n_1 - 2, ...)."""
        axes = _axes(x)
        if min(x.shape[k] for k in axes) < 3:
            raise ValueError(f"edges need 3 positions along every axis, got shape {tuple(x.shape)}")
        return torch.cat([_derivative(x, along, axes) for along in axes], 1)


def _derivative(x: Tensor, along: int, axes: tuple[int, ...]) -> Tensor:
    for k in axes:
        n = x.shape[k] - 2
        before, here, after = (x.narrow(k, i, n) for i in range(3))
        x = (after - before) / 2 if k == along else (before + 2 * here + after) / 4
    return x


def _axes(x: Tensor) -> tuple[int, ...]:
    if x.ndim < 3:
        raise ValueError(f"frequencies are those of signals or pictures (B, C, ...), got shape {tuple(x.shape)}")
    return tuple(range(2, x.ndim))
