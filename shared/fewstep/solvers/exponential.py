"""Exponential integrators in lambda = log(a/s): the exact weights that all DPM-type solvers approximate (arXiv:2206.00927, 2211.01095).

    data form    z_s = (s_s/s_t) z_t + s_s INT exp(l) x0 dl
    noise form   z_s = (a_s/a_t) z_t - a_s INT exp(-l) eps dl

With f = x0 or eps as a Taylor series around lambda_t, h = lambda_s - lambda_t:

    z_s = c_x z_t + sum_{k >= 1} E_k h^(k-1) f^(k-1),    E_k = -w u phi_k(u),    (w, u) = (a_s, -h) data, (s_s, h) noise
    phi_1(u) = (e^u - 1)/u,   phi_{k+1}(u) = (phi_k(u) - 1/k!)/u
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Half


def phi(k: int, u: Tensor) -> Tensor:
    """phi_k(u) = sum_j u^j / (j + k)!, elementwise in float64; by this series where |u| < 1, where the recursion loses digits."""
    small = u.abs() < 1
    v, w = torch.where(small, u, 0.0), torch.where(small, 1.0, u)
    series = torch.zeros_like(u)
    for j in reversed(range(18)):
        series = series * v + 1 / math.factorial(j + k)
    direct = torch.expm1(w) / w
    for j in range(1, k):
        direct = (direct - 1 / math.factorial(j)) / w
    return torch.where(small, series, direct)


@dataclass(frozen=True)
class Step:
    """One step t -> s of a path in data ("x0") or noise ("eps") form, elementwise in the times; NaN times give NaN."""

    path: Path
    t: Tensor
    s: Tensor
    uses: Half = "x0"

    @property
    def h(self) -> Tensor:
        """lambda_s - lambda_t; infinite at a singular end."""
        return self.path.log_snr(self.s) - self.path.log_snr(self.t)

    @property
    def c_x(self) -> Tensor:
        """The weight of the state, finite wherever the form is defined."""
        (at, _, st), (as_, _, ss) = self.path.schedule(self.t), self.path.schedule(self.s)
        return ss / st if self.uses == "x0" else as_ / at

    @property
    def first(self) -> Tensor:
        """E_1 in closed form, finite at s_s = 0 (and, in data form, at a_t = 0)."""
        (at, _, st), (as_, _, ss) = self.path.schedule(self.t), self.path.schedule(self.s)
        return as_ - at * ss / st if self.uses == "x0" else ss - as_ * st / at

    def moment(self, k: int) -> Tensor:
        """E_k, the weight of h^(k-1) f^(k-1)."""
        if k == 1:
            return self.first
        as_, _, ss = self.path.schedule(self.s)
        return as_ * self.h * phi(k, -self.h) if self.uses == "x0" else -ss * self.h * phi(k, self.h)
