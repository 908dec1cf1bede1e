"""EDM's grid (arXiv:2206.00364, eq. 5)."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.grids.base import Grid
from fewstep.grids.levels import of_levels
from fewstep.paths import Path


@dataclass(frozen=True)
class Karras(Grid):
    """n values (smax^(1/r) + i/(n-1) (smin^(1/r) - smax^(1/r)))^r of rho = s/a, then clean.

    sigma_min, sigma_max: range of rho; sigma_max None takes the path's own at t_max, which must then be finite.
    clean: false for n + 1 values that end at sigma_min.
    """

    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float | None = None
    clean: bool = True

    def __call__(self, path: Path, n: int) -> Tensor:
        def values(smax: float, smin: float, u: Tensor) -> Tensor:
            r = 1 / self.rho
            return (smax**r + u * (smin**r - smax**r)) ** self.rho

        return of_levels("Karras", path, n, self.sigma_min, self.sigma_max, self.clean, values)
