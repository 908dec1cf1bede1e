"""Guidance that changes with time: t -> cfg, for every rule that takes a cfg.

With tau = (t - t_min)/(t_max - t_min), 0 clean and 1 noise:

    cfg(t) = max(floor, 1 + (cfg - 1) shape(tau))

    Linear        2 (1 - tau)                         mean 1 (arXiv:2404.13040; with a floor their clamp-linear)
    Cosine        1 + cos(pi tau)                     mean 1 (same paper)
    PowerCosine   (1 - cos(pi (1 - tau)^power))/2     peak 1 at the clean end (MDT, arXiv:2303.14389)
    BetaShape     tau^(p-1) (1-tau)^(q-1) / B(p, q)   mean 1, none at both ends for p, q > 1 (arXiv:2502.10574)

The schedule scales the guidance, cfg - 1, so that its zeros are the conditional model, not the unconditional one.
`Piecewise` gives cfg itself by ranges of t: time-adaptive guidance, one schedule per condition of a `Chain`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fewstep.guidance.inner import per_sample


class Schedule(ABC):
    """A guidance scale as a function of time."""

    @abstractmethod
    def scale(self, t: Tensor) -> Tensor:
        """cfg at times t, elementwise in float64."""

    def __call__(self, t: float | Tensor) -> float | Tensor:
        """cfg at a float time, or (B,) at per-sample times (B,)."""
        if isinstance(t, Tensor):
            return self.scale(t.double())
        return _scale(self, t)


@lru_cache(maxsize=4096)
def _scale(schedule: Schedule, t: float) -> float:
    return schedule.scale(torch.tensor(t, dtype=torch.float64)).item()


Scale = float | Schedule


def weight(cfg: Scale | Tensor, t: float | Tensor, x: Tensor) -> float | Tensor:
    """cfg (also one per sample, (B,)) at time t beside x: (B, ...): a number, or (B, 1, ..., 1)."""
    return per_sample(cfg(t) if isinstance(cfg, Schedule) else cfg, x)


@dataclass(frozen=True)
class Shaped(Schedule):
    """max(floor, 1 + (cfg - 1) shape(tau)) with times in [t_min, t_max]."""

    cfg: float
    floor: float = 1.0
    t_min: float = 0.0
    t_max: float = 1.0

    @abstractmethod
    def shape(self, tau: Tensor) -> Tensor:
        """Elementwise on [0, 1], 0 clean and 1 noise."""

    def scale(self, t: Tensor) -> Tensor:
        tau = ((t - self.t_min) / (self.t_max - self.t_min)).clamp(0, 1)
        return (1 + (self.cfg - 1) * self.shape(tau)).clamp(min=self.floor)


@dataclass(frozen=True)
class Linear(Shaped):
    """From none at the noisy end to twice the guidance at the clean end."""

    def shape(self, tau: Tensor) -> Tensor:
        return 2 * (1 - tau)


@dataclass(frozen=True)
class Cosine(Shaped):
    """As linear, flat at both ends."""

    def shape(self, tau: Tensor) -> Tensor:
        return 1 + torch.cos(math.pi * tau)


@dataclass(frozen=True)
class PowerCosine(Shaped):
    """Guidance late: the larger the power, the later."""

    power: float = 4.0

    def shape(self, tau: Tensor) -> Tensor:
        return (1 - torch.cos(math.pi * (1 - tau) ** self.power)) / 2


@dataclass(frozen=True)
class BetaShape(Shaped):
    """The density of a Beta(p, q) variable: guidance in the middle."""

    p: float = 2.0
    q: float = 2.0

    def shape(self, tau: Tensor) -> Tensor:
        log_norm = math.lgamma(self.p + self.q) - math.lgamma(self.p) - math.lgamma(self.q)
        return tau ** (self.p - 1) * (1 - tau) ** (self.q - 1) * math.exp(log_norm)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """cfg = values[k] for edges[k-1] < t <= edges[k]; edges increase, values are one more, the cleanest first."""

    edges: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
        if not rising or len(self.values) != len(self.edges) + 1:
            raise ValueError(f"n increasing edges need n + 1 values, got edges {self.edges} and values {self.values}")

    def scale(self, t: Tensor) -> Tensor:
        values, edges = (torch.tensor(v, dtype=torch.float64, device=t.device) for v in (self.values, self.edges))
        return values[torch.bucketize(t, edges)]
