"""Grids on the indices of a discrete process (DDPM tables, ResShift, RDDM), whose clean end is -1."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from fewstep.grids.base import Grid, between
from fewstep.paths import Path


def indices(path: Path, n: int, name: str) -> int:
    """The number of indices of a path that is asked for n of them."""
    hi, lo = between(path, n, None)
    if lo != -1.0:
        raise ValueError(f"{name} spacing needs a path of step indices, {type(path).__name__} has times [{lo}, {hi}]")
    total = int(hi) + 1
    if n > total:
        raise ValueError(f"{n} steps asked of a process with {total} indices")
    return total


@dataclass(frozen=True)
class Spaced(Grid):
    """n of the N indices, then the clean end -1.

    include_end   round(linspace(0, N-1, n))             first and last index kept (diffusers' linspace)
    trailing      round(N - i N/n) - 1                   last index kept (diffusers)
    leading       i * (N // n) + offset                  (diffusers)
    floor         floor(N i / n)                         ResShift's official respacing: does not start at the last index
    dpm_linspace  round(linspace(0, N-1, n+1)) but 0     diffusers' DPM-Solver family: n + 1 points without the cleanest
    dpm_leading   i * (N // (n+1)) + offset, i = 1 .. n  the same for leading

    end: the last time; 0 stops at the first index, where the process keeps its smallest noise
    (`final_sigmas_type="sigma_min"`).
    """

    spacing: Literal["include_end", "trailing", "leading", "floor", "dpm_linspace", "dpm_leading"] = "include_end"
    offset: int = 0
    end: float = -1.0

    def __call__(self, path: Path, n: int) -> Tensor:
        total = indices(path, n, self.spacing)
        at: Callable[[int], int] = {
            "include_end": lambda i: round(i * ((total - 1) / (n - 1))) if n > 1 else total - 1,
            "trailing": lambda i: round(total - (n - 1 - i) * total / n) - 1,
            "leading": lambda i: i * (total // n) + self.offset,
            "floor": lambda i: total * i // n,
            "dpm_linspace": lambda i: round((i + 1) * ((total - 1) / n)),
            "dpm_leading": lambda i: (i + 1) * (total // (n + 1)) + self.offset,
        }[self.spacing]
        index = [at(i) for i in range(n)]
        if index[-1] > total - 1:
            raise ValueError(
                f"{self.spacing} spacing with offset {self.offset} asks for index {index[-1]:g}, the last one is {total - 1}"
            )
        times = [*reversed(index), self.end]
        if self.end < -1 or any(t <= s for t, s in pairwise(times)):
            raise ValueError(
                f"{self.spacing} spacing of {n} steps over {total} indices does not decrease to {self.end:g}"
            )
        return torch.tensor(times, dtype=torch.float64)


@dataclass(frozen=True)
class LCMSpaced(Grid):
    """n of the `origin` indices that a consistency model was distilled on (arXiv:2310.04378), then the clean end.

    Of j (N // origin) - 1, j = origin .. 1, those at positions floor(i origin/n), i = 0 .. n - 1.
    """

    origin: int = 50

    def __call__(self, path: Path, n: int) -> Tensor:
        total = indices(path, n, "LCM")
        if not n <= self.origin <= total:
            raise ValueError(f"LCM spacing needs steps <= origin <= indices, got {n}, {self.origin} and {total}")
        kept = torch.tensor([self.origin - i * self.origin // n for i in range(n)], dtype=torch.float64)
        return torch.cat([kept * (total // self.origin) - 1, torch.tensor([-1.0], dtype=torch.float64)])
