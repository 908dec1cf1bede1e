"""Rectified flow from a noised degraded image to the clean one (OFTSR, arXiv:2412.09465).

x_t = (1 - t) x0 + t (sqrt(1 - p^2) y + p eps),    u = dx/dt = x_1 - x0
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class AnchoredFlow(Path):
    """a = 1 - t, b = t sqrt(1 - p^2), s = t p with p = noise in (0, 1]; p = 1 is the rectified flow."""

    anchored: ClassVar[bool] = True

    noise: float = 0.2

    def schedule(self, t: Tensor) -> Triple:
        return 1 - t, t * math.sqrt(1 - self.noise**2), t * self.noise

    def rates(self, t: Tensor) -> Triple:
        one = torch.ones_like(t)
        return -one, one * math.sqrt(1 - self.noise**2), one * self.noise

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam.double() - math.log(self.noise))
