"""The pairs of times (t, s), s cleaner, between which a loss compares: intervals(n, path, progress) -> (t, s), both (n,) in float64.

progress in [0, 1] is the share of the training that is done: curricula refine with it, so that a longer training is the same curriculum
stretched, and a resumed one continues where it was.

    Adjacent              neighbours on a grid, each as likely                              CM, LCM
    LogNormalBins         neighbours on a grid, drawn as a log-normal noise level is        iCT
    ContinuousIntervals   any t, and s = t (1 - (1 - ratio) n(t)), ratio -> 1 in stages     ECT, TCM

The number of steps of a grid may be a curriculum: `Doubling` (iCT), `SquareRoot` (CM's consistency training).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.grids import Grid, Karras, Uniform
from fewstep.grids.base import remembered
from fewstep.paths import Path
from fewstep.paths.base import nearest_time
from fewstep.times import LogNormalTimes, TimeSampler


@dataclass(frozen=True)
class Curriculum(ABC):
    """progress in [0, 1] -> steps of a grid, one less than the papers' N of its points."""

    @abstractmethod
    def __call__(self, progress: float) -> int: ...


@dataclass(frozen=True)
class Doubling(Curriculum):
    """min(first 2^i, last) in stages i of equal length, as many as it takes: iCT (arXiv:2310.14189, eq. 12)."""

    first: int = 10
    last: int = 1280

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ValueError(f"steps double from first >= 1 up to last, got {self.first} and {self.last}")

    def __call__(self, progress: float) -> int:
        stages = math.floor(math.log2(self.last / self.first)) + 1
        return min(self.first * 2 ** math.floor(progress * stages), self.last)


@dataclass(frozen=True)
class SquareRoot(Curriculum):
    """N - 1 = ceil(sqrt(progress ((last + 1)^2 - first^2) + first^2) - 1): CM's consistency training (arXiv:2303.01469, app. C)."""

    first: int = 2
    last: int = 150

    def __post_init__(self) -> None:
        if not 2 <= self.first <= self.last:
            raise ValueError(f"points grow from first >= 2 up to last, got {self.first} and {self.last}")

    def __call__(self, progress: float) -> int:
        return math.ceil(math.sqrt(progress * ((self.last + 1) ** 2 - self.first**2) + self.first**2) - 1)


def steps_at(steps: int | Curriculum, progress: float) -> int:
    """The steps of a grid at this progress."""
    return steps if isinstance(steps, int) else steps(progress)


@dataclass(frozen=True)
class Intervals(ABC):
    """Draws n intervals from the global generator (which training shells seed at every iteration)."""

    @abstractmethod
    def __call__(self, n: int, path: Path, progress: float = 0.0) -> tuple[Tensor, Tensor]: ...

    def pace(self, progress: float) -> float:
        """N(0)/N(progress), N the points of the grid: by how much intervals have become finer; 1 without a curriculum."""
        return 1.0


@dataclass(frozen=True)
class OnGrid(Intervals):
    """Intervals between the times of a grid of `steps` steps, a number or a curriculum."""

    steps: int | Curriculum = 18
    grid: Grid = Uniform()

    def pace(self, progress: float) -> float:
        return (steps_at(self.steps, 0.0) + 1) / (steps_at(self.steps, progress) + 1)

    def times(self, path: Path, progress: float) -> Tensor:
        """(steps + 1,) decreasing."""
        return remembered(self.grid, path, steps_at(self.steps, progress))


@dataclass(frozen=True)
class Adjacent(OnGrid):
    """Neighbours on the grid, each as likely: CM (arXiv:2303.01469), LCM's skipping (arXiv:2310.04378).

    stride: s is that many grid times after t, and the grid's end where there are fewer.
    """

    stride: int = 1

    def __call__(self, n: int, path: Path, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        times = self.times(path, progress)
        i = torch.randint(0, len(times) - 1, (n,))
        return times[i], times[(i + self.stride).clamp(max=len(times) - 1)]


@dataclass(frozen=True)
class LogNormalBins(OnGrid):
    """Neighbours t, s on the grid with the probability of a log-normal level between them: iCT (arXiv:2310.14189, eq. 10).

    P ~ Phi(z(t)) - Phi(z(s)), z = (log(rho) - mean)/std, rho = s/a.
    """

    steps: int | Curriculum = Doubling()
    grid: Grid = Karras(sigma_max=80.0, clean=False)
    mean: float = -1.1
    std: float = 2.0

    def probabilities(self, times: Tensor, path: Path) -> Tensor:
        """(steps,), of each interval, noisiest first."""
        below = torch.special.ndtr((-path.log_snr(times) - self.mean) / self.std)
        mass = below[:-1] - below[1:]
        return mass / mass.sum()

    def __call__(self, n: int, path: Path, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        times = self.times(path, progress)
        i = torch.multinomial(self.probabilities(times, path), n, replacement=True)
        return times[i], times[i + 1]


@dataclass(frozen=True)
class ContinuousIntervals(Intervals):
    """ECT's mapping of levels (arXiv:2406.14548): rho_s = rho_t (1 - n(rho_t)/q^(i + 1)), not below 0, in stages i of equal length.

    n(rho) = 1 + slope sigmoid(-rho): intervals are longer near the data. With q = 2 the first stage is nearly a denoising regression.

    times: of t; limit: the share 1 - 1/q^(i + 1) stays below it. TCM's second stage has one stage, at the limit.
    """

    times: TimeSampler = LogNormalTimes(-1.1, 2.0)
    q: float = 2.0
    stages: int = 8
    slope: float = 8.0
    limit: float = 0.999

    def __post_init__(self) -> None:
        if not (self.q > 1 and self.stages >= 1 and 0 < self.limit < 1):
            raise ValueError(
                f"needs q > 1, stages >= 1 and limit in (0, 1), got {self.q}, {self.stages} and {self.limit}"
            )

    def ratio(self, progress: float) -> float:
        """1 - 1/q^(i + 1) at the stage i of this progress, or the limit."""
        stage = min(math.floor(progress * self.stages), self.stages - 1)
        return min(1 - self.q ** -(stage + 1), self.limit)

    def end(self, t: Tensor, path: Path, progress: float = 0.0) -> Tensor:
        """s of given t: (n,)."""
        rho = (-path.log_snr(t)).exp()
        share = 1 - (1 - self.ratio(progress)) * (1 + self.slope * torch.sigmoid(-rho))
        return nearest_time(path, -(rho * share.clamp(min=0)).log())

    def __call__(self, n: int, path: Path, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        t = self.times(n, path)
        return t, self.end(t, path, progress)
