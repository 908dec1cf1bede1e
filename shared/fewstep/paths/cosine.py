"""Variance-preserving cosine path (Improved DDPM, arXiv:2102.09672) in continuous time.

a = cos((t + o)/(1 + o) pi/2) / cos(o/(1 + o) pi/2),   s = sqrt(1 - a^2),   o = 0.008
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class Cosine(Path):
    """Cosine VP path on [0, end]; the end 0.9946 keeps a away from 0 (DPM-Solver's choice)."""

    offset: float = 0.008
    end: float = 0.9946

    @property
    def t_max(self) -> float:
        return self.end

    def _angle(self, t: Tensor) -> Tensor:
        return (t + self.offset) / (1 + self.offset) * (math.pi / 2)

    @property
    def _first(self) -> float:
        return math.cos(self.offset / (1 + self.offset) * math.pi / 2)

    def schedule(self, t: Tensor) -> Triple:
        a = (self._angle(t).cos() / self._first).clamp(max=1.0)
        return a, torch.zeros_like(t), ((1 - a) * (1 + a)).sqrt()

    def rates(self, t: Tensor) -> Triple:
        """a' = -sin(angle) angle' / cos(first angle),  s' = -a a' / s."""
        a, zero, s = self.schedule(t)
        da = -self._angle(t).sin() * (math.pi / 2 / (1 + self.offset)) / self._first
        return da, zero, -a * da / s

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        a = torch.sigmoid(2 * lam.double()).sqrt()
        return torch.arccos(a * self._first) * (2 * (1 + self.offset) / math.pi) - self.offset
