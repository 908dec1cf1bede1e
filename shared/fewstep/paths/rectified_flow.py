"""Rectified flow / conditional optimal transport: x_t = (1 - t) x0 + t eps (arXiv:2209.03003, arXiv:2210.02747).

With sigma_min > 0 a little noise is left at the clean end, s = sigma_min + (1 - sigma_min) t (arXiv:2210.02747, eq. 20;
Matcha-TTS, PeriodWave: 1e-4).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class RectifiedFlow(Path):
    """a = 1 - t, s = t; u = dx/dt = eps - x0. In general s = sigma_min + (1 - sigma_min) t."""

    sigma_min: float = 0.0

    def schedule(self, t: Tensor) -> Triple:
        return 1 - t, torch.zeros_like(t), self.sigma_min + (1 - self.sigma_min) * t

    def rates(self, t: Tensor) -> Triple:
        one = torch.ones_like(t)
        return -one, torch.zeros_like(t), one * (1 - self.sigma_min)

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        """s/(a + s) = sigmoid(-lambda) with a + s = 1 + sigma_min (1 - t)."""
        q = torch.sigmoid(-lam.double())
        return (q - self.sigma_min * (1 - q)) / (1 - self.sigma_min * (1 - q))
