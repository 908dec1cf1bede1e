"""OUVE of SGMSE+ (arXiv:2208.05830): an Ornstein-Uhlenbeck pull towards noisy speech y with exploding noise.

dx = theta (y - x) dt + g dW,  g = sigma_min r^t sqrt(2 log r),  r = sigma_max / sigma_min

a = exp(-theta t),  b = 1 - a,  s^2 = sigma_min^2 (r^(2t) - exp(-2 theta t)) log r / (theta + log r)

a(1) = exp(-theta) > 0: `start` gives y + s(1) xi, whose mean differs from the path's own by a(1) (x0 - y).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class OUVE(Path):
    """OUVE path on [0, 1]; networks are trained on [0.03, 1], so grids end there, e.g. `Uniform(end=0.03)`."""

    anchored: ClassVar[bool] = True

    theta: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5

    @property
    def _log_r(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @property
    def _scale(self) -> float:
        """s^2 exp(2 theta t) / (exp(2 (theta + log r) t) - 1)."""
        return self.sigma_min**2 * self._log_r / (self.theta + self._log_r)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t) of the forward SDE."""
        return self.sigma_min * (self._log_r * t).exp() * math.sqrt(2 * self._log_r)

    def schedule(self, t: Tensor) -> Triple:
        a = (-self.theta * t).exp()
        rho2 = self._scale * torch.expm1(2 * (self.theta + self._log_r) * t)
        return a, -torch.expm1(-self.theta * t), a * rho2.sqrt()

    def rates(self, t: Tensor) -> Triple:
        """a' = -theta a, b' = -a', (s^2)' = g^2 - 2 theta s^2; s' is infinite at t = 0."""
        a, _, s = self.schedule(t)
        return -self.theta * a, self.theta * a, (self.diffusion(t) ** 2 / s - 2 * self.theta * s) / 2

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        rho2 = (-2 * lam.double()).exp()
        return torch.log1p(rho2 / self._scale) / (2 * (self.theta + self._log_r))
