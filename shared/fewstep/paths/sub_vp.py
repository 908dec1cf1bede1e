"""Sub-VP path (arXiv:2011.13456, eq. 29): the signal of VP with less noise, s = 1 - a^2.

log a = -(B1 - B0) t^2 / 4 - B0 t / 2        s = 1 - a^2        lambda = -log(2 sinh(-log a))
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths.base import Triple
from fewstep.paths.vp import VP


@dataclass(frozen=True)
class SubVP(VP):
    """Sub-VP path; beta_min = B0 and beta_max = B1 at t = 0 and 1."""

    def schedule(self, t: Tensor) -> Triple:
        log_a = self._log_a(t)
        return log_a.exp(), torch.zeros_like(t), -torch.expm1(2 * log_a)

    def rates(self, t: Tensor) -> Triple:
        """a' = a (log a)',  s' = -2 a a'."""
        a, zero, _ = self.schedule(t)
        da = a * self._log_a_rate(t)
        return da, zero, -2 * a * da

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        """a/(1 - a^2) = exp(lambda) has the root -log a = arcsinh(exp(-lambda)/2)."""
        return self._time_of_log_a(-torch.arcsinh((-lam.double()).exp() / 2))
