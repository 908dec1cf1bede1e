"""The times of methods that learn jumps: pairs for MeanFlow, the teacher's spans for CTM, halvings for shortcuts.

All in float64 on the CPU, from the global generator.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.grids import Grid, Uniform
from fewstep.grids.base import remembered
from fewstep.paths import Path
from fewstep.times import LogitNormalTimes, TimeSampler


@dataclass(frozen=True)
class IntervalTimes(ABC):
    """(n, path) -> (t, s, m): (n,) each, s <= t; only the first m pairs may differ."""

    @abstractmethod
    def __call__(self, n: int, path: Path) -> tuple[Tensor, Tensor, int]: ...


@dataclass(frozen=True)
class TimePairs(IntervalTimes):
    """MeanFlow's (t, r): the larger and the smaller of two draws, and r = t in a share of the batch (arXiv:2505.13447).

    times: of each draw; equal: that share, 0.75 in the paper. Those pairs keep the larger of two draws as t, as in the
    official code.
    Raises:
        ValueError: a share outside of [0, 1].
    """

    times: TimeSampler = LogitNormalTimes(-0.4, 1.0)
    equal: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.equal <= 1:
            raise ValueError(f"the share of equal times is in [0, 1], not {self.equal}")

    def __call__(self, n: int, path: Path) -> tuple[Tensor, Tensor, int]:
        """(t, r, m): (n,) each, r <= t; only the first m pairs may differ."""
        first, second = self.times(n, path), self.times(n, path)
        t, r, m = torch.maximum(first, second), torch.minimum(first, second), n - round(self.equal * n)
        r[m:] = t[m:]
        return t, r, m


@dataclass(frozen=True)
class TeacherSpans:
    """CTM's t > u >= s (arXiv:2310.02279, official code): k teacher steps t -> u on a grid, and any time s of it after.

    k is the same for the whole batch (of one process), 1 <= k <= longest with probability ~ k^power; the place of the
    span is uniform, and so is s.

    steps, grid: of the teacher (17 intervals between EDM's 18 points for CIFAR-10, 39 for ImageNet); longest: all of
    them unless given.
    Raises:
        ValueError: longest outside of [1, steps].
    """

    steps: int = 17
    grid: Grid = Uniform()
    longest: int | None = None
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.longest is not None and not 1 <= self.longest <= self.steps:
            raise ValueError(f"spans of {self.steps} steps are at most so long, not {self.longest}")

    def __call__(self, n: int, path: Path) -> tuple[Tensor, Tensor]:
        """(the k + 1 times from t to u (n, k + 1), s (n,))."""
        times = remembered(self.grid, path, self.steps)
        lengths = torch.arange(1, (self.longest or self.steps) + 1)
        k = int(lengths[torch.multinomial(lengths.double() ** self.power, 1)])
        begin = torch.randint(0, self.steps - k + 1, (n,))
        left = self.steps - begin - k  # grid steps from u to the clean end
        s = begin + k + (torch.rand(n, dtype=torch.float64) * (left + 1)).long().clamp(max=left)
        return times[begin[:, None] + torch.arange(k + 1)], times[s]


@dataclass(frozen=True)
class Halvings(IntervalTimes):
    """Shortcut models' (t, s) (arXiv:2410.12557): jumps of 1, 1/2, ..., 1/finest of the range, at their multiples.

    share: of the batch, the first ones; the others have s = t, uniform on the finest multiples. The paper has no jumps
    of 1/finest itself in its bootstrap, where it then asks for d = 0; here they are learnt from two halves with d = 0.
    Raises:
        ValueError: finest is no power of two, or the share outside of [0, 1].
    """

    finest: int = 128
    share: float = 0.25

    def __post_init__(self) -> None:
        if self.finest < 1 or self.finest & (self.finest - 1) or not 0 <= self.share <= 1:
            raise ValueError(f"finest is a power of two and share in [0, 1], not {self.finest} and {self.share}")

    def __call__(self, n: int, path: Path) -> tuple[Tensor, Tensor, int]:
        """(t, s, m): (n,) each, t - s = 0 but for the first m."""
        m, lo, length = round(self.share * n), path.t_min, path.t_max - path.t_min
        parts = 2 ** torch.randint(0, self.finest.bit_length(), (n,))
        parts[m:] = self.finest
        end = (torch.rand(n, dtype=torch.float64) * parts).floor().clamp(max=parts - 1)
        t, s = lo + length * (end + 1) / parts, lo + length * end / parts
        s[m:] = t[m:]
        return t, s, m

    def smallest(self, t: Tensor, s: Tensor, path: Path) -> Tensor:
        """Where t - s is shorter than any jump that is learnt and the velocity stands for it; (B,) booleans."""
        return (t - s) < 0.75 * (path.t_max - path.t_min) / self.finest
