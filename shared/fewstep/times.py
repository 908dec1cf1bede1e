"""Samplers of training times on a path: sampler(n, path) -> (n,) float64 times."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.grids import Grid, Uniform
from fewstep.paths import Path
from fewstep.paths.base import nearest_time


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
class BetweenTimes(TimeSampler):
    """Uniform between two shares of the range, 0 its clean end, stratified over the batch.

    Raises:
        ValueError: unless 0 <= low < high <= 1.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"times are drawn between shares 0 <= low < high <= 1, not {self.low} and {self.high}")

    def __call__(self, n: int, path: Path) -> Tensor:
        unit = (UniformTimes()(n, path) - path.t_min) / (path.t_max - path.t_min)
        return path.t_min + (path.t_max - path.t_min) * (self.low + (self.high - self.low) * unit)


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


@dataclass(frozen=True)
class MixedTimes(TimeSampler):
    """A share of the batch, rounded, by `second`, the rest by `first`.

    Raises:
        ValueError: a share outside of [0, 1].
    """

    first: TimeSampler
    second: TimeSampler
    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share of the second sampler is in [0, 1], not {self.share}")

    def __call__(self, n: int, path: Path) -> Tensor:
        rest = round(self.share * n)
        return torch.cat([self.first(n - rest, path), self.second(rest, path)])


@dataclass(frozen=True)
class HalfLogNormalTimes(TimeSampler):
    """CTM's denoising levels (arXiv:2310.02279, official code): half of the batch as `LogNormalTimes`, the rest at the noisy end:

    rho^(1/7) uniform from that of sigma_max down by `share` of the way to that of sigma_min.
    """

    mean: float = -1.2
    std: float = 1.2
    share: float = 0.7
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __call__(self, n: int, path: Path) -> Tensor:
        normal = LogNormalTimes(self.mean, self.std)(n // 2, path)
        top, bottom = self.sigma_max ** (1 / 7), self.sigma_min ** (1 / 7)
        root = top + self.share * torch.rand(n - n // 2, dtype=torch.float64) * (bottom - top)
        noisy = path.time_of_log_snr(-7 * root.log()).clamp(path.t_min, path.t_max)
        return torch.cat([normal, noisy])


@dataclass(frozen=True)
class LogitNormalTimes(TimeSampler):
    """logit of the share of the time range ~ N(mean, std^2): t = t_min + (t_max - t_min) sigmoid(.) (arXiv:2403.03206)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, n: int, path: Path) -> Tensor:
        unit = torch.sigmoid(self.mean + self.std * torch.randn(n, dtype=torch.float64))
        return path.t_min + (path.t_max - path.t_min) * unit


@dataclass(frozen=True)
class UShapedTimes(TimeSampler):
    """Density e^(a t) + e^(a (1 - t)) on the range as [0, 1]: both ends more often than the middle (RF++, arXiv:2405.20320).

    margin: the draws are squeezed into [margin, 1 - margin]. With a = 4 mean .5, variance .1154, P(t < .1) = .1725.
    """

    a: float = 4.0
    margin: float = 1e-5

    def __call__(self, n: int, path: Path) -> Tensor:
        rising = torch.log1p(torch.rand(n, dtype=torch.float64) * math.expm1(self.a)) / self.a
        unit = torch.where(torch.rand(n) < 0.5, rising, 1 - rising)
        unit = self.margin + (1 - 2 * self.margin) * unit
        return path.t_min + (path.t_max - path.t_min) * unit


@dataclass(frozen=True)
class GridTimes(TimeSampler):
    """The times at which a student of `steps` steps is evaluated, each as likely: a grid without its clean end."""

    steps: int = 1
    grid: Grid = Uniform()  # noqa: RUF009

    def __call__(self, n: int, path: Path) -> Tensor:
        return self.grid(path, self.steps)[torch.randint(0, self.steps, (n,))]


@dataclass(frozen=True)
class LogStudentTimes(TimeSampler):
    """log(rho) by Student's t with few degrees of freedom, cut off outside [low, high]: nearly 1/|log(rho) - mean| beyond a sharp peak.

    TCM's heavy-tailed noise levels above its boundary (arXiv:2410.14895).
    """

    mean: float = 0.0
    std: float = 0.2
    df: float = 0.01
    low: float = 1.0
    high: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"levels are drawn from 0 < low < high < inf, got {self.low} and {self.high}")

    def __call__(self, n: int, path: Path) -> Tensor:
        at = torch.linspace(math.log(self.low), math.log(self.high), 8193, dtype=torch.float64)
        density = (1 + ((at - self.mean) / self.std) ** 2 / self.df) ** (-(self.df + 1) / 2)
        share = torch.cat([at.new_zeros(1), torch.cumulative_trapezoid(density, at)])
        u = share[-1] * torch.rand(n, dtype=torch.float64)
        i = torch.searchsorted(share, u).clamp(min=1)
        log_rho = torch.lerp(at[i - 1], at[i], (u - share[i - 1]) / (share[i] - share[i - 1]))
        return nearest_time(path, -log_rho)
