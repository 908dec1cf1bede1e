"""Grids even in t, or in a root of it."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.grids.base import Grid, between, unit
from fewstep.paths import Path


@dataclass(frozen=True)
class Uniform(Grid):
    """Equal steps in t. `Uniform(end=1e-4)` is SB-VE's official grid, `ThenClean(Uniform(end=0.03))` SGMSE's.

    start, end: t_max and the path's clean end unless given.
    """

    end: float | None = None
    start: float | None = None

    def __call__(self, path: Path, n: int) -> Tensor:
        hi, lo = between(path, n, self.end, self.start)
        t = hi + unit(n) * (lo - hi)
        t[-1] = lo
        return t


@dataclass(frozen=True)
class Power(Grid):
    """Equal steps in t^(1/p): p = 2 is the quadratic grid, p = 7 is Karras' on the EDM path without its final zero."""

    p: float = 2.0
    end: float | None = None

    def __call__(self, path: Path, n: int) -> Tensor:
        hi, lo = between(path, n, self.end)
        if lo < 0:
            raise ValueError(f"the power grid needs times >= 0, {type(path).__name__} ends at {lo}")
        r = 1 / self.p
        t = (hi**r + unit(n) * (lo**r - hi**r)) ** self.p
        t[0], t[-1] = hi, lo
        return t
