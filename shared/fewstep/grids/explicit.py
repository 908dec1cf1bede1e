"""Times given one by one, e.g. found by a search."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.grids.base import Grid
from fewstep.paths import Path


@dataclass(frozen=True)
class Explicit(Grid):
    """Given times, decreasing; n must be their number minus one."""

    times: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(self.times))  # lists cannot be compared as keys

    def __call__(self, path: Path, n: int) -> Tensor:
        t = torch.tensor(self.times, dtype=torch.float64)
        if len(t) != n + 1 or n < 1 or not (t[:-1] > t[1:]).all():
            raise ValueError(f"explicit grid: {n} steps need {n + 1} decreasing times, got {list(self.times)}")
        return t
