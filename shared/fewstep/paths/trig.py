"""Trigonometric path of TrigFlow (arXiv:2410.11081): x_t = cos(t) x0 + sin(t) eps, t in [0, pi/2]."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class Trig(Path):
    """a = cos t, s = sin t. For data of standard deviation sd scale x0 by 1/sd first."""

    @property
    def t_max(self) -> float:
        return math.pi / 2

    def schedule(self, t: Tensor) -> Triple:
        # sin(pi/2 - t) is exactly 0 at t = pi/2, where cos(t) leaves 6e-17.
        return (math.pi / 2 - t).sin(), torch.zeros_like(t), t.sin()

    def rates(self, t: Tensor) -> Triple:
        a, zero, s = self.schedule(t)
        return -s, zero, a

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        return torch.arctan((-lam.double()).exp())
