"""Stochastic interpolants (arXiv:2303.08797): x_t = alpha(t) x0 + beta(t) x1 + gamma(t) xi between two given ends.

The other end x1 is the anchor y. t = 0 is x0 and t = 1 is x1; gamma vanishes at both.

    ends     Straight   1 - t, t                     Arc   sqrt(1 - gamma^2) (cos(pi t/2), sin(pi t/2))
    gamma    Brownian   sqrt(scale t (1 - t))        Parabola   scale t (1 - t)        SineSquared   scale sin^2(pi t)

One-sided (x1 = white noise, no anchor): `OneSided(ends)`, x_t = alpha(t) x0 + beta(t) eps.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class Ends(ABC):
    """(alpha, beta) at t, where the noise has variance v = gamma^2; 1, 0 at t = 0 and 0, 1 at t = 1."""

    @abstractmethod
    def __call__(self, t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Straight(Ends):
    """1 - t, t."""

    def __call__(self, t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t


@dataclass(frozen=True)
class Arc(Ends):
    """sqrt(1 - gamma^2) (cos(pi t/2), sin(pi t/2)): alpha^2 + beta^2 + gamma^2 = 1; gamma < 1."""

    def __call__(self, t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        size = (1 - v).sqrt()
        # The sine of 1 - t is exactly 0 at t = 1, where the cosine of t is not.
        return size * (math.pi / 2 * (1 - t)).sin(), size * (math.pi / 2 * t).sin()


@dataclass(frozen=True)
class Gamma(ABC):
    """The noise level: its variance gamma^2 and gamma itself, 0 at both ends."""

    falls_slower: ClassVar[bool] = True  # than alpha at t = 1, so that lambda decreases

    scale: float = 1.0

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor: ...

    def variance(self, t: Tensor) -> Tensor:
        return self(t) ** 2


@dataclass(frozen=True)
class Brownian(Gamma):
    """sqrt(scale t (1 - t)), a Brownian bridge: gamma' is infinite at both ends, where velocities do not exist."""

    def __call__(self, t: Tensor) -> Tensor:
        return self.variance(t).sqrt()

    def variance(self, t: Tensor) -> Tensor:
        return self.scale * t * (1 - t)


@dataclass(frozen=True)
class Parabola(Gamma):
    """scale t (1 - t)."""

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * t * (1 - t)


@dataclass(frozen=True)
class SineSquared(Gamma):
    """scale sin^2(pi t): falls faster than alpha at t = 1, so lambda turns round; see `Interpolant`."""

    falls_slower: ClassVar[bool] = False

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * (math.pi * torch.minimum(t, 1 - t)).sin() ** 2


@dataclass(frozen=True)
class Interpolant(Path):
    """Two-sided interpolant on [0, 1]; sampling starts at x = y.

    lambda = log(alpha/gamma) falls from +inf to -inf with Brownian, to a finite value with Parabola (-log scale,
    Straight), and comes back to +inf with SineSquared: there use grids in t and solvers that do not look at lambda
    (DDIM).
    """

    anchored: ClassVar[bool] = True

    ends: Ends = Straight()
    gamma: Gamma = Brownian()

    def schedule(self, t: Tensor) -> Triple:
        return *self.ends(t, self.gamma.variance(t)), self.gamma(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return torch.where(t == 1, self._last_log_snr, super().log_snr(t))

    @cached_property
    def _last_log_snr(self) -> float:
        """lambda(1), by l'Hopital's rule on 0/0."""
        da, _, ds = self.rates(torch.ones(1, dtype=torch.float64))
        return (da / ds).abs().log().item()

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        if not self.gamma.falls_slower:
            raise ValueError(f"lambda of {self} does not fall from t = 0 to 1: it has no inverse, use a grid in t")
        return super().time_of_log_snr(lam)


@dataclass(frozen=True)
class OneSided(Path):
    """a = alpha, s = beta. Straight ends are the rectified flow, Arc is the trigonometric path with t in [0, 1]."""

    ends: Ends = Straight()

    def schedule(self, t: Tensor) -> Triple:
        alpha, beta = self.ends(t, torch.zeros_like(t))
        return alpha, torch.zeros_like(t), beta
