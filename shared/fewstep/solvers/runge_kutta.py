"""Explicit Runge-Kutta methods for the probability flow, in rho or in t. NFE per step: the stages of the tableau.

    in rho   d(z/a)/drho = eps = (z - a x0)/s                        rhoRK of DEIS (arXiv:2204.13902), Heun of EDM
    in t     dz/dt = a' x0 + s' eps = (s'/s) z + (a' - a s'/s) x0    flow matching, EDM's ablation (arXiv:2206.00364)

stage k   z_k / q_k = z_t / q_t + h sum_{j < k} A_kj f_j,  f the right-hand side;   q = a in rho, 1 in t
          at the time where the variable is v_t + c_k h,  h = v_s - v_t

A step into s = 0 is Euler's in the same variable, of one evaluation, as in EDM. Out of a = 0 (the start of a rectified
flow) a step in rho is DDIM's, while the velocity in t is finite there. Where that is infinite the step is DDIM's too
(ResidualShift, t = 0).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Row, Solver, Stage


@dataclass(frozen=True)
class Tableau:
    """a: rows of A from the second stage on, of 1, 2, ... numbers; b: weights of the result; order: of the method."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

    def __post_init__(self) -> None:
        if [len(row) for row in self.a] != list(range(1, len(self.b))):
            raise ValueError(
                f"a tableau of {len(self.b)} stages has rows of 1, ..., {len(self.b) - 1} numbers, got {self.a}"
            )

    @property
    def c(self) -> tuple[float, ...]:
        """Where the stages are, as a share of the step."""
        return (0.0, *map(sum, self.a))


def second_order(alpha: float) -> Tableau:
    """The two-stage family of EDM's ablation: node alpha in (0, 1], weights 1 - 1/(2 alpha) and 1/(2 alpha)."""
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is in (0, 1], got {alpha}")
    return Tableau(((alpha,),), (1 - 1 / (2 * alpha), 1 / (2 * alpha)), 2)


EULER = Tableau((), (1.0,), 1)
HEUN2 = second_order(1.0)
MIDPOINT = second_order(0.5)
RALSTON2 = second_order(2 / 3)
KUTTA3 = Tableau(((0.5,), (-1.0, 2.0)), (1 / 6, 4 / 6, 1 / 6), 3)
HEUN3 = Tableau(((1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), 3)
RALSTON3 = Tableau(((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), 3)
HOUWEN3 = Tableau(((8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0.0, 3 / 4), 3)
SSP3 = Tableau(((1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), 3)
RK4 = Tableau(((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4)


@dataclass(frozen=True)
class RungeKutta(Solver):
    """tableau: a constant from above, `second_order(alpha)`, or any explicit one. variable: of the equation solved."""

    tableau: Tableau = HEUN2
    variable: Literal["rho", "t"] = "rho"

    def __post_init__(self) -> None:
        if self.variable not in ("rho", "t"):
            raise ValueError(f"RungeKutta integrates in rho or t, not in {self.variable!r}")

    @property
    def order(self) -> int:
        return self.tableau.order

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        times, rows = [*self._times(path, t, s), s], [*self.tableau.a, self.tableau.b]
        h = s - t if self.variable == "t" else rho(path, s) - rho(path, t)
        slopes = [self._slope(path, v) for v in times[:-1]]
        start, stages = self._scale(path, t), []
        for n, (row, end) in enumerate(zip(rows, times[1:], strict=True)):
            q = self._scale(path, end)
            x = [q * h * w * on_x for w, (on_x, _) in zip(row, slopes, strict=False)]
            e = [q * h * w * on_x0 for w, (_, on_x0) in zip(row, slopes, strict=False)]
            x[0] = x[0] + q / start
            stages.append(Stage(times[n], tuple(x[::-1]), tuple(e[::-1])))
        return tuple(stages)

    def _times(self, path: Path, t: Tensor, s: Tensor) -> list[Tensor]:
        """Of the stages."""
        if self.variable == "t":
            return [t + c * (s - t) for c in self.tableau.c]
        lo, hi = rho(path, t), rho(path, s)
        inner = (
            path.time_of_log_snr(-(lo + c * (hi - lo)).log()) if 0 < c < 1 else s if c else t for c in self.tableau.c
        )
        return list(inner)

    def _slope(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
        """The right-hand side as weights of (z, x0)."""
        a, _, s = path.schedule(t)
        if self.variable == "rho":
            return 1 / s, -a / s
        da, _, ds = path.rates(t)
        return ds / s, da - a * ds / s

    def _scale(self, path: Path, t: Tensor) -> Tensor:
        return path.schedule(t)[0] if self.variable == "rho" else torch.ones_like(t)

    def regular(self, path: Path, t: Tensor, s: Tensor, stages: int) -> Tensor:
        if self.variable == "rho":
            return super().regular(path, t, s, stages) & (path.schedule(t)[0] != 0)
        used = [*self._times(path, t, s), *([s] if stages > 1 else [])]
        finite = [v.isfinite() for time in used for v in self._slope(path, time)]
        return torch.stack(finite).all(0)

    def rows(self, path: Path, grid: Tensor) -> Iterator[Row]:
        regular = self.regular(path, grid[:-1], grid[1:], len(self.tableau.b)).tolist()
        for good, run in groupby(range(len(regular)), regular.__getitem__):
            steps = list(run)
            solver = self if good else replace(self, tableau=EULER)
            yield from Solver.rows(solver, path, grid[steps[0] : steps[-1] + 2])


def rho(path: Path, t: Tensor) -> Tensor:
    """s/a."""
    a, _, s = path.schedule(t)
    return s / a
