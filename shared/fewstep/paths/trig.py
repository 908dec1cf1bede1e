"""Trigonometric path of TrigFlow (arXiv:2410.11081): x_t = cos(t) x0 + sin(t) sd eps, t in [0, pi/2]."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class Trig(Path):
    """a = cos t, s = sd sin t with sd = sigma_data, the standard deviation of x0: that of x_t is then sd at every t."""

    sigma_data: float = 1.0

    @property
    def t_max(self) -> float:
        return math.pi / 2

    def schedule(self, t: Tensor) -> Triple:
        # sin(pi/2 - t) is exactly 0 at t = pi/2, where cos(t) leaves 6e-17.
        return (math.pi / 2 - t).sin(), torch.zeros_like(t), self.sigma_data * t.sin()

    def rates(self, t: Tensor) -> Triple:
        return -t.sin(), torch.zeros_like(t), self.sigma_data * (math.pi / 2 - t).sin()

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        return torch.arctan((-lam.double()).exp() / self.sigma_data)
