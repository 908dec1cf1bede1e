"""SB-VE: the Schroedinger bridge between clean x0 and noisy y with exploding noise (arXiv:2407.16074, 2409.10753).

S^2(t) = c (k^(2t) - 1) / (2 log k),  S_T = S(1)

a = (S_T^2 - S^2)/S_T^2,   b = S^2/S_T^2,   s = S sqrt(S_T^2 - S^2)/S_T = S_T sqrt(a b)

Both ends are free of noise: x = x0 at t = 0 and x = y at t = 1. lambda = log(a/b)/2 - log S_T falls from +inf to -inf.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class SBVE(Path):
    """SB-VE path on [0, 1]. s' is infinite at both ends, and so are velocity rows; networks predict x0."""

    anchored: ClassVar[bool] = True

    k: float = 2.6
    c: float = 0.4

    @property
    def _rate(self) -> float:
        return 2 * math.log(self.k)

    def s2(self, t: Tensor) -> Tensor:
        """S^2(t), the variance of the reference process."""
        return self.c / self._rate * torch.expm1(self._rate * t)

    @property
    def _total(self) -> float:
        """S_T^2."""
        return self.c / self._rate * math.expm1(self._rate)

    def schedule(self, t: Tensor) -> Triple:
        whole = torch.expm1(torch.full_like(t, self._rate))
        b = torch.expm1(self._rate * t) / whole
        a = (self._rate * t).exp() * torch.expm1(self._rate * (1 - t)) / whole  # not 1 - b, which loses digits at t = 1
        return a, b, (self._total * a * b).sqrt()

    def rates(self, t: Tensor) -> Triple:
        """b' = -a' = rate k^(2t)/(k^2 - 1),  s' = S_T b' (a - b)/(2 sqrt(a b))."""
        a, b, _ = self.schedule(t)
        db = self._rate * (self._rate * t).exp() / math.expm1(self._rate)
        return -db, db, math.sqrt(self._total) * db * (a - b) / (2 * (a * b).sqrt())

    def log_snr(self, t: Tensor) -> Tensor:
        """log(a/s) without the 0/0 of t = 1."""
        a, b, _ = self.schedule(t)
        return (a.log() - b.log() - math.log(self._total)) / 2

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        b = torch.sigmoid(-2 * lam.double() - math.log(self._total))
        return torch.log1p(b * math.expm1(self._rate)) / self._rate
