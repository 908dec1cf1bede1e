"""The shortest path of a Gaussian to white noise in the Fisher metric (Shortest Path Diffusion, arXiv:2306.00501).

For data of variance D the variance of x_t goes geometrically to 1, Var x_t = D^(1-t), on a variance-preserving path:

    a^2 = (1 - D^(1-t))/(1 - D),    s^2 = 1 - a^2 = (D^(1-t) - D)/(1 - D);        D = 1: a^2 = 1 - t

Natural images have one D per frequency: `SpectralShortestPath` (banded.py).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


def shortest(t: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a, s, a', s') elementwise in t and log D. (a^2)' = -log D D^(1-t)/(D - 1); infinite where a or s is 0."""
    # The limit D = 1 is reached from beside it, where the coefficients differ from it by 1e-9.
    log = torch.where(log_variance.abs() < 1e-9, 1e-9, log_variance)
    left, whole = log * (1 - t), torch.expm1(log)
    a = (torch.expm1(left) / whole).clamp(max=1.0).sqrt()
    s = (left.exp() * torch.expm1(log * t) / whole).clamp(max=1.0).sqrt()
    da2 = -log * left.exp() / whole
    return a, s, da2 / (2 * a), -da2 / (2 * s)


@dataclass(frozen=True)
class ShortestPath(Path):
    """variance: D > 0, of the data."""

    variance: float = 0.25

    def _log(self, t: Tensor) -> Tensor:
        return torch.full_like(t, math.log(self.variance))

    def schedule(self, t: Tensor) -> Triple:
        a, s, _, _ = shortest(t, self._log(t))
        return a, torch.zeros_like(t), s

    def rates(self, t: Tensor) -> Triple:
        _, _, da, ds = shortest(t, self._log(t))
        return da, torch.zeros_like(t), ds

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        """D^(1-t) - 1 = (D - 1)/(1 + rho^2)."""
        log = math.log(self.variance)
        log = log if abs(log) > 1e-9 else 1e-9
        return 1 - torch.log1p(math.expm1(log) * torch.sigmoid(2 * lam.double())) / log
