"""Grids made of grids."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.grids.base import Grid, between, decreasing
from fewstep.paths import Path
from fewstep.paths.base import nearest_time


@dataclass(frozen=True)
class ThenClean(Grid):
    """n - 1 steps of a grid that stops before the clean end, then one step into it.

    `ThenClean(Uniform(end=0.03))` on OUVE is SGMSE's; `ThenClean(Matched(VP(), Uniform(end=1e-3)))` k-diffusion's `vp`.
    """

    grid: Grid

    def __call__(self, path: Path, n: int) -> Tensor:
        _, lo = between(path, n, None)
        t = self.grid(path, n - 1) if n > 1 else self.grid(path, 1)[:1]
        return decreasing(torch.cat([t, t.new_tensor([lo])]), self)


@dataclass(frozen=True)
class Matched(Grid):
    """The times of equal lambda of a grid on another path; where this path does not reach a lambda, its own end."""

    other: Path
    grid: Grid

    def __call__(self, path: Path, n: int) -> Tensor:
        lam = self.other.log_snr(self.grid(self.other, n))
        return decreasing(nearest_time(path, lam), self)
