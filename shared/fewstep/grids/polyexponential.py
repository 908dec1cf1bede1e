"""Levels even in log(s/a) or polynomial in it (k-diffusion's exponential and polyexponential schedules)."""

import math
from dataclasses import dataclass

from torch import Tensor

from fewstep.grids.base import Grid
from fewstep.grids.levels import of_levels
from fewstep.paths import Path


@dataclass(frozen=True)
class Polyexponential(Grid):
    """n values exp(log smin + (1 - i/(n-1))^rho (log smax - log smin)) of s/a, then clean; rho = 1: exponential.

    sigma_min, sigma_max: range of s/a; sigma_max None takes the path's own at t_max, which must then be finite.
    clean: false for n + 1 values that end at sigma_min.
    """

    rho: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float | None = None
    clean: bool = True

    def __call__(self, path: Path, n: int) -> Tensor:
        def values(smax: float, smin: float, u: Tensor) -> Tensor:
            return smin * ((1 - u) ** self.rho * math.log(smax / smin)).exp()

        return of_levels("Polyexponential", path, n, self.sigma_min, self.sigma_max, self.clean, values)
