"""Discrete variance-preserving processes, given by a table of betas, as paths.

a_n = sqrt(prod_{i <= n} (1 - beta_i)),  n = 0 .. N-1,   s = sqrt(1 - a^2),   log a piecewise linear between the knots

    IndexedVP    t = n, clean at -1: the time that networks of DDPM and Stable Diffusion are given
    DiscreteVP   t = (n + 1)/N as in DPM-Solver (arXiv:2206.00927), extrapolated linearly below the first knot
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fewstep.paths.base import Path, Triple
from fewstep.paths.betas import Betas
from fewstep.paths.piecewise import interpolate, invert


def log_alphas(beta: Tensor) -> Tensor:
    """log a_n, (N,)."""
    return 0.5 * torch.log1p(-beta).cumsum(0)


def minus_log_alpha(lam: Tensor) -> Tensor:
    """-log a of a variance-preserving path at log-SNR lam, float64."""
    return softplus(-2 * lam.double()) / 2


class Indexed(Path):
    """Index time in [-1, N - 1] over `table`; after index N - 2 a table whose last beta is 1 falls linearly in a."""

    @abstractmethod
    def table(self) -> Tensor:
        """The betas, (N,) float64."""

    @cached_property
    def _knots(self) -> Tensor:
        """-log a at -1, 0, ..., without the knot where it is infinite."""
        knots = torch.cat([torch.zeros(1, dtype=torch.float64), -log_alphas(self.table())])
        return knots[knots.isfinite()]

    @cached_property
    def _last(self) -> int:
        return len(self.table()) - 1

    @property
    def _vanishes(self) -> bool:
        return len(self._knots) < self._last + 2

    @property
    def t_min(self) -> float:
        return -1.0

    @property
    def t_max(self) -> float:
        return float(self._last)

    def _log_a(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(log a, its right-hand slope); the slope means nothing in a last piece that is linear in a."""
        if not self._vanishes:
            value, slope = interpolate(self._knots, t + 1)
            return -value, -slope
        value, slope = interpolate(self._knots, (t + 1).clamp(max=self._last))
        return -(value - (self._last - t).clamp(max=1).log()), -slope

    def schedule(self, t: Tensor) -> Triple:
        log_a, _ = self._log_a(t)
        return log_a.exp(), torch.zeros_like(t), (-torch.expm1(2 * log_a)).sqrt()

    def rates(self, t: Tensor) -> Triple:
        """Right-hand derivatives at the knots: a' = a (log a)', s' = -a a' / s, infinite at the clean end."""
        (a, zero, s), (_, slope) = self.schedule(t), self._log_a(t)
        da = a * slope
        if self._vanishes:
            da = torch.where(t >= self._last - 1, -(-self._knots[-1].to(t)).exp(), da)
        return da, zero, -a * da / s

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        value = minus_log_alpha(lam)
        t = invert(self._knots, value) - 1
        if self._vanishes:
            knot = self._knots[-1]
            t = torch.where(value > knot, self._last - (knot - value).exp(), t)
        return t


@dataclass(frozen=True)
class IndexedVP(Indexed):
    """t in [-1, N - 1]: -1 is clean data, N - 1 the noisiest index."""

    betas: Betas

    def table(self) -> Tensor:
        return self.betas()


@dataclass(frozen=True)
class DiscreteVP(Path):
    """t in [t_min, 1]; t_min, a little above 0, is where the extrapolated table reaches a = 1.

    lam_min: knots of lower lambda at the noisy end are dropped and the M kept ones spread over t = 1/M .. 1, as
    DPM-Solver does for cosine tables; None keeps all.
    """

    betas: Betas
    lam_min: float | None = -5.1

    @cached_property
    def _knots(self) -> Tensor:
        """-log a at t = 1/M, ..., 1."""
        knots = -log_alphas(self.betas())
        if self.lam_min is not None:
            lowest = minus_log_alpha(torch.tensor(self.lam_min, dtype=torch.float64))
            knots = knots[knots <= lowest]
        if len(knots) < 2 or not knots.isfinite().all():
            raise ValueError(f"{len(knots)} knots of {self.betas} have lambda >= {self.lam_min}: lower or set lam_min")
        return knots

    @cached_property
    def _root(self) -> float:
        """Where the line through the first two knots reaches log a = 0; at t < 0 for tables that start off steeply."""
        zero = invert(self._knots, torch.zeros((), dtype=torch.float64))
        return ((zero + 1) / len(self._knots)).item()

    @property
    def t_min(self) -> float:
        return max(self._root, 0.0)

    def schedule(self, t: Tensor) -> Triple:
        value = interpolate(self._knots, t * len(self._knots) - 1)[0]
        log_a = -torch.where(t <= self._root, 0.0, value)
        return log_a.exp(), torch.zeros_like(t), (-torch.expm1(2 * log_a)).sqrt()

    def rates(self, t: Tensor) -> Triple:
        """Right-hand derivatives at the knots: a' = a (log a)',  s' = -a a' / s."""
        m = len(self._knots)
        (a, zero, s), slope = self.schedule(t), -m * interpolate(self._knots, t * m - 1)[1]
        return a * slope, zero, -(a**2) * slope / s

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        return (invert(self._knots, minus_log_alpha(lam)) + 1) / len(self._knots)
