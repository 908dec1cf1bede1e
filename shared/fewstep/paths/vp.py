"""Variance-preserving path with linear beta (arXiv:2011.13456, eq. 33; the continuous limit of DDPM).

log a = -(B1 - B0) t^2 / 4 - B0 t / 2        s = sqrt(1 - a^2)
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class VP(Path):
    """VP path; beta_min = B0 and beta_max = B1 at t = 0 and 1."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _log_a(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _log_a_rate(self, t: Tensor) -> Tensor:
        return -0.5 * (t * (self.beta_max - self.beta_min) + self.beta_min)

    def _time_of_log_a(self, log_a: Tensor) -> Tensor:
        """The positive root of the quadratic, in the form that also holds at B0 = B1."""
        span = 4 * (self.beta_max - self.beta_min)
        return -4 * log_a / ((self.beta_min**2 - span * log_a).sqrt() + self.beta_min)

    def schedule(self, t: Tensor) -> Triple:
        log_a = self._log_a(t)
        return log_a.exp(), torch.zeros_like(t), (-torch.expm1(2 * log_a)).sqrt()

    def rates(self, t: Tensor) -> Triple:
        """a' = a (log a)',  s' = -a a' / s."""
        (a, zero, s), dlog = self.schedule(t), self._log_a_rate(t)
        return a * dlog, zero, -(a**2) * dlog / s

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        return self._time_of_log_a(-softplus(-2 * lam.double()) / 2)
