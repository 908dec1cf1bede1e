"""Mean-reverting SDE of IR-SDE (arXiv:2301.11699): x0 decays into the degraded image y under stationary noise.

dx = theta (y - x) dt + sigma dW,  sigma^2 = 2 sigma_max^2 theta

a = exp(-dt Theta_i),  b = 1 - a,  s = sigma_max sqrt(1 - a^2)
Theta_i = theta_1 + ... + theta_i,  dt = -log(eps)/Theta_T

Time is the step index i in [0, T], 0 clean; Theta is piecewise linear between the indices. a(T) = eps.
A VP path rescaled by sigma_max and centred on y, so samplers of VP paths apply as they are (MRS, arXiv:2502.07856).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple
from fewstep.paths.piecewise import interpolate, invert


@dataclass(frozen=True)
class MeanReverting(Path):
    """IR-SDE's path with T = steps indices, t in [0, T].

    sigma_max: stationary standard deviation; the official configurations write 255 times it (10, 30, 50, 70).
    eps: what is left of x0 - y at T.
    thetas: `cosine` (1 minus iDDPM's cumulative product), `linear` (0.1 .. 20)/(T + 1), `constant`.

    `start` is y + s(T) xi with s(T) = sigma_max sqrt(1 - eps^2); the official code takes y + sigma_max xi.
    """

    anchored: ClassVar[bool] = True

    steps: int = 100
    sigma_max: float = 50 / 255
    eps: float = 0.005
    thetas: Literal["cosine", "linear", "constant"] = "cosine"

    @property
    def t_max(self) -> float:
        return float(self.steps)

    @cached_property
    def _theta(self) -> Tensor:
        """theta_0 .. theta_T."""
        n = self.steps + 1
        if self.thetas == "cosine":
            j = torch.arange(1, n + 1, dtype=torch.float64)
            first = math.cos(0.008 / 1.008 * math.pi / 2)
            return 1 - (((j / (n + 1) + 0.008) / 1.008 * (math.pi / 2)).cos() / first) ** 2
        if self.thetas == "linear":
            return torch.linspace(0.1 / n, 20 / n, n, dtype=torch.float64)
        return torch.ones(n, dtype=torch.float64)

    @cached_property
    def _sums(self) -> Tensor:
        """Theta_0 = 0 .. Theta_T."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), self._theta[1:].cumsum(0)])

    @property
    def dt(self) -> float:
        """The length of one index in the time of the SDE."""
        return -math.log(self.eps) / self._sums[-1].item()

    def theta(self, t: Tensor) -> Tensor:
        """theta at the integer indices t, elementwise."""
        return self._theta.to(t)[t.long()]

    def sigma(self, t: Tensor) -> Tensor:
        """sigma = sigma_max sqrt(2 theta) at the integer indices t, elementwise."""
        return self.sigma_max * (2 * self.theta(t)).sqrt()

    def schedule(self, t: Tensor) -> Triple:
        log_a = -self.dt * interpolate(self._sums, t)[0]
        return log_a.exp(), -torch.expm1(log_a), self.sigma_max * (-torch.expm1(2 * log_a)).sqrt()

    def rates(self, t: Tensor) -> Triple:
        """a' = -a dt Theta',  s' = -sigma_max^2 a a'/s, per index; right-hand at the indices, s' infinite at 0."""
        a, _, s = self.schedule(t)
        da = -a * self.dt * interpolate(self._sums, t)[1]
        return da, -da, -(self.sigma_max**2) * a * da / s

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        log_a = -torch.log1p((-2 * lam.double()).exp() / self.sigma_max**2) / 2
        return invert(self._sums, -log_a / self.dt)
