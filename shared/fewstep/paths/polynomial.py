"""Polynomial convex path: x_t = (1 - t^n) x0 + t^n eps, a rectified flow in another time (arXiv:2503.19385)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class Polynomial(Path):
    """a = 1 - t^n, s = t^n with n > 0; n = 1 is the rectified flow."""

    n: float = 2.0

    def schedule(self, t: Tensor) -> Triple:
        return 0.0 - torch.expm1(self.n * t.log()), torch.zeros_like(t), t**self.n

    def rates(self, t: Tensor) -> Triple:
        ds = self.n * t ** (self.n - 1)
        return -ds, torch.zeros_like(t), ds

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam.double()) ** (1 / self.n)
