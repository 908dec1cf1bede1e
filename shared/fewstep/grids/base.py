"""Time grids: n steps -> n + 1 decreasing float64 times from the noisy to the clean end of a path.

Grids are small frozen objects, called as grid(path, n); they are saved with a student.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fewstep.paths import Path


@dataclass(frozen=True)
class Grid(ABC):
    """n steps -> (n + 1,) float64 times, strictly decreasing, from t_max to the clean end unless said otherwise."""

    @abstractmethod
    def __call__(self, path: Path, n: int) -> Tensor: ...


def between(path: Path, n: int, end: float | None, start: float | None = None) -> tuple[float, float]:
    """(noisy, clean end) of a grid of n >= 1 steps, the path's own unless given."""
    if n < 1:
        raise ValueError(f"a grid needs at least 1 step, not {n}")
    if end is not None and not path.t_min <= end < path.t_max:
        raise ValueError(f"a grid on {type(path).__name__} ends in [{path.t_min:g}, {path.t_max:g}), not at {end}")
    lo = path.t_min if end is None else end
    if start is not None and not lo < start <= path.t_max:
        raise ValueError(
            f"a grid on {type(path).__name__} that ends at {lo:g} begins in ({lo:g}, {path.t_max:g}], not at {start}"
        )
    return path.t_max if start is None else start, lo


def unit(n: int) -> Tensor:
    """0, 1/n, ..., 1 in float64."""
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)


def decreasing(t: Tensor, what: object) -> Tensor:
    """t, if its times strictly decrease."""
    if not (t[:-1] > t[1:]).all():
        raise ValueError(f"{what}: times {[round(v, 6) for v in t.tolist()]} do not decrease on this path")
    return t


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is remembered must serve training too
def remembered(grid: Grid, path: Path, n: int) -> Tensor:
    """grid(path, n), computed once for equal arguments: for losses, which ask at every iteration. Not to be changed in place.

    Not kept in the objects that ask: jsonargparse reads everything in an object that is a parameter's default.
    """
    return grid(path, n)
