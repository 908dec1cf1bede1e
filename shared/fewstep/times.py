"""Samplers of training times on a path: sampler(n, path) -> (n,) float64 times."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Path


@dataclass(frozen=True)
class TimeSampler(ABC):
    """Draws n times from the global generator (which training shells seed at every iteration)."""

    @abstractmethod
    def __call__(self, n: int, path: Path) -> Tensor: ...


@dataclass(frozen=True)
class UniformTimes(TimeSampler):
    """Uniform in [t_min + margin, t_max - margin], stratified over the batch: sample i falls in the i-th of n equal parts."""

    margin: float = 0.0

    def __call__(self, n: int, path: Path) -> Tensor:
        unit = (torch.randperm(n) + torch.rand(n, dtype=torch.float64)) / n
        lo, hi = path.t_min + self.margin, path.t_max - self.margin
        return lo + (hi - lo) * unit


@dataclass(frozen=True)
class IndexTimes(TimeSampler):
    """Step indices 0 .. t_max of a discrete process; a share `at_end` of the batch sits at the last index, the rest is uniform."""

    at_end: float = 0.0

    def __call__(self, n: int, path: Path) -> Tensor:
        t = torch.randint(0, int(path.t_max) + 1, (n,)).double()
        t[: round(self.at_end * n)] = path.t_max
        return t


@dataclass(frozen=True)
class LogNormalTimes(TimeSampler):
    """EDM's training levels (arXiv:2206.00364): log(rho) ~ N(mean, std^2), rho = s/a, mapped to the path's time."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, n: int, path: Path) -> Tensor:
        log_rho = self.mean + self.std * torch.randn(n, dtype=torch.float64)
        return path.time_of_log_snr(-log_rho).clamp(path.t_min, path.t_max)
