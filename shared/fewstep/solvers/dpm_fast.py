"""DPM-Solver-fast (arXiv:2206.00927, appendix D.4): singlestep DPM-Solver for a given number of evaluations. 1 NFE per time of the grid.

A grid of n + 1 times is n evaluations: the inner nodes of a step are times of the grid themselves, as in the grid `Fast`. Steps of order k
and fewer at the end:

    k = 3   [3, ..., 3, 2, 1]  (n = 3m)    [3, ..., 3, 1]  (n = 3m + 1)    [3, ..., 3, 2]  (n = 3m + 2)
    k = 2   [2, ..., 2]  or  [2, ..., 2, 1]
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.grids.fast import fast_orders
from fewstep.paths import Path
from fewstep.solvers.ancestral import downstep
from fewstep.solvers.base import Half, Row, Solver, Stage, first_order
from fewstep.solvers.dpm_multistep import Rule
from fewstep.solvers.dpm_singlestep import DPMSinglestep, inner_times, noisy_rows


@dataclass(frozen=True)
class DPMFast(Solver):
    """A step out of a = 0 or into s = 0 is a first-order step of its own and not counted among the orders, so that a clean time after
    the grid of the official code is its `denoise_to_zero`.

    Args:
        k, uses, rule: see `DPMSinglestep`.
        orders: "fast", as above; "fixed": k in every step, n a multiple of k; or the orders themselves.
        eta, s_noise: run every step to a cleaner time and noise it back, see `Renoised`; never beyond the end of the grid.
    """

    k: int = 3
    uses: Half = "eps"
    rule: Rule = "midpoint"
    orders: Literal["fast", "fixed"] | tuple[int, ...] = "fast"
    eta: float = 0.0
    s_noise: float = 1.0

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the worst n: a last step of order 1, which "fast" takes for two n in three (k = 3), leaves an error of second order."""
        if self.orders == "fast":
            return min(self.k, 2)
        return self.k if self.orders == "fixed" else min(self.orders)

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        """One step of order k between two times, with the inner nodes of the paper and without noise."""
        return DPMSinglestep(self.k, self.uses, self.rule).stages(path, t, s, past)

    def rows(self, path: Path, grid: Tensor) -> Iterator[Row]:
        a, _, s = path.schedule(grid)
        first, n = int(a[0] == 0), len(grid) - 1
        last = int(n > first and (a[-1] == 0 or s[-1] == 0))
        if first:
            yield first_order(path, grid[0], grid[1])
        at = first
        for k in self.split(n - first - last):
            yield from self.step_rows(path, grid[at : at + k + 1], grid[-1])
            at += k
        if last:
            yield first_order(path, grid[-2], grid[-1])

    def step_rows(self, path: Path, times: Tensor, last: Tensor) -> Iterator[Row]:
        """The rows of the step over times (t, inner nodes ..., s); none goes beyond `last`, the end of the grid."""
        t, s = times[0], times[-1]
        d = downstep(path, t, s, self.eta, last)
        if d != s:
            lam = path.log_snr(times)
            times = torch.stack([t, *inner_times(path, t, d, (lam[1:-1] - lam[0]) / (lam[-1] - lam[0])), d])
        return noisy_rows(path, tuple(times), s, self.uses, self.rule, self.s_noise)

    def split(self, n: int) -> Sequence[int]:
        """The orders of steps of n evaluations in all."""
        if self.orders == "fast":
            orders = fast_orders(self.k, n) if n else []
        else:
            orders = [self.k] * (n // self.k) if self.orders == "fixed" else self.orders
        if sum(orders) != n or not all(1 <= k <= 3 for k in orders):
            raise ValueError(f"{type(self).__name__}: steps of orders {list(orders)} do not make up {n} evaluations")
        return orders
