"""Rectified flow / conditional optimal transport: x_t = (1 - t) x0 + t eps (arXiv:2209.03003, arXiv:2210.02747)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class RectifiedFlow(Path):
    """a = 1 - t, s = t; u = dx/dt = eps - x0."""

    def schedule(self, t: Tensor) -> Triple:
        return 1 - t, torch.zeros_like(t), t

    def rates(self, t: Tensor) -> Triple:
        one = torch.ones_like(t)
        return -one, torch.zeros_like(t), one

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam.double())
