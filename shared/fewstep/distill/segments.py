"""Segments of the time range: consistency is asked only between times of one segment (PCM, arXiv:2405.18407; TSCD, arXiv:2404.13686).

    t_0 > t_1 > ... > t_k        end(t) = the next boundary below t

One segment is a consistency model; as many as a grid has steps is plain regression on the teacher's steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.grids import Grid, Uniform
from fewstep.grids.base import remembered
from fewstep.paths import Path


@dataclass(frozen=True)
class Segments:
    """The k segments between the k + 1 times of a grid."""

    k: int = 1
    grid: Grid = Uniform()

    def at(self, progress: float) -> "Segments":
        """The same segments all through a training."""
        return self

    def boundaries(self, path: Path) -> Tensor:
        """(k + 1,) decreasing float64 times, t_max to the clean end."""
        return remembered(self.grid, path, self.k)

    def end(self, t: Tensor, path: Path) -> Tensor:
        """(B,) times -> the largest boundary below each; the clean end at and below it.

        A time that is a boundary but for rounding belongs to the segment below: grids of other numbers of steps meet boundaries so.
        """
        return self._boundary(t, path, 0)

    def begin(self, t: Tensor, path: Path) -> Tensor:
        """(B,) times -> where the segments that `end` puts them in begin."""
        return self._boundary(t, path, 1)

    def _boundary(self, t: Tensor, path: Path, above: int) -> Tensor:
        rising, close = self.boundaries(path).flip(0).to(t.device), 1e-9 * (path.t_max - path.t_min)
        return rising[(torch.searchsorted(rising, t.double() - close) - 1).clamp(min=0) + above]


@dataclass(frozen=True)
class SegmentStages:
    """Numbers of segments in stages of equal length, each trained from where the one before ended (TSCD: 8, 4, 2, 1)."""

    ks: tuple[int, ...] = (8, 4, 2, 1)
    grid: Grid = Uniform()

    def at(self, progress: float) -> Segments:
        """The segments at this progress in [0, 1]."""
        return Segments(self.ks[min(int(progress * len(self.ks)), len(self.ks) - 1)], self.grid)
