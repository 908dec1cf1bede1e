"""The pairs of times (t, s), s cleaner, between which a loss compares: intervals(n, path, progress) -> (t, s), both (n,) in float64.

progress in [0, 1] is the share of the training that is done: curricula refine with it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.grids import Grid, Uniform
from fewstep.paths import Path


@dataclass(frozen=True)
class Intervals(ABC):
    """Draws n intervals from the global generator (which training shells seed at every iteration)."""

    @abstractmethod
    def __call__(self, n: int, path: Path, progress: float = 0.0) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Adjacent(Intervals):
    """Neighbours on a grid of `steps` steps, each as likely: CM (arXiv:2303.01469), LCM's skipping (arXiv:2310.04378).

    stride: s is that many grid times after t, and the grid's end where there are fewer.
    """

    steps: int = 18
    grid: Grid = Uniform()
    stride: int = 1

    @cached_property
    def _times(self) -> dict[Path, Tensor]:
        return {}

    def __call__(self, n: int, path: Path, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        times = self._times.setdefault(path, self.grid(path, self.steps))
        i = torch.randint(0, self.steps, (n,))
        return times[i], times[(i + self.stride).clamp(max=self.steps)]
