"""OLSS (arXiv:2305.14677): a student whose rows are least-squares combinations of the teacher's start and estimates.

    x_{k+1} = w_k x_T + sum_{j <= k} W_kj eps_j

(x0_j instead of eps_j on paths that start without data: there eps_0 = x_T would tell nothing.)
Weights and times come from recorded trajectories alone: row k is fitted to the teacher's state at its end, with the estimates at the
student's nodes but on the teacher's path. Times are chosen greedily: jump as far as the mean square of the fit stays below a bound, and
bisect the bound until the jumps are as many as wanted.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.search.least_squares import solve, triangle
from fewstep.search.starts import Starts, fine_grid
from fewstep.search.trajectories import Trajectory, record
from fewstep.solvers.base import Half
from fewstep.solvers.schedule import SolverSchedule
from fewstep.solvers.table import Table, TableRow

# Rounding errors of recorded states, in units of the resolution of their numbers.
DIGITS = 8.0


@dataclass(frozen=True)
class Regression:
    """All inner products of x_T, the estimates E_0 .. E_{n-1} and the states x_1 .. x_n of a teacher; columns in this order.

    r: their triangle (least_squares.py); n: steps of the teacher; count: coordinates of all starts; rounding: of the columns;
    uses: the half of the estimates in the columns, eps unless said otherwise.
    """

    r: Tensor
    n: int
    count: int
    rounding: Tensor
    uses: Half

    @classmethod
    def of(cls, path: Path, teacher: Sequence[Trajectory]) -> "Regression":
        """Reduce recorded trajectories, one batch at a time."""
        a, _, s = path.schedule(teacher[0].grid[:-1])
        uses: Half = "eps" if a[0] > 0 else "x0"
        batches = (
            torch.stack(
                [v.flatten() for v in (t.states[0], *(getattr(e, uses) for e in t.estimates), *t.states[1:])], 1
            )
            for t in teacher
        )
        r, n = triangle(batches), len(teacher[0].estimates)
        states = r[:, [0, *range(n + 1, 2 * n)]].norm(dim=0)  # x_T, x_1 .. x_{n-1}: where the estimates were made
        # A state of a long trajectory has lost some digits, and eps = (x - a x0)/s is off by its error over s.
        lost = DIGITS * torch.finfo(teacher[0].states[0].dtype).eps * states
        rounding = torch.cat([lost[:1], lost / s if uses == "eps" else lost])
        return cls(r, n, sum(t.states[0].numel() for t in teacher), rounding, uses)

    def fit(self, nodes: Sequence[int], targets: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Weights (1 + len(nodes), len(targets)) of x_T and of the estimates at `nodes`, and the mean squares, for states x_j at `targets`."""
        columns = [0, *(1 + j for j in nodes)]
        weights, square = solve(self.r, columns, [self.n + j for j in targets], self.rounding)
        return weights, square / self.count

    def jumps(self, bound: float, most: int) -> tuple[int, ...] | None:
        """The nodes of the greedy walk under a bound, last n; None where it takes more than `most` jumps."""
        nodes = [0]
        while nodes[-1] < self.n:
            if len(nodes) > most:
                return None
            ahead = range(nodes[-1] + 1, self.n + 1)
            left = self.fit(nodes, ahead)[1]
            nodes.append(
                max((j for j, square in zip(ahead, left.tolist(), strict=True) if square <= bound), default=ahead[0])
            )
        return tuple(nodes)

    def choose(self, k: int) -> tuple[tuple[int, ...], float]:
        """The nodes of k steps by the least bound that allows them, and the bound. It never rises with k.

        Raises:
            ValueError: unless 1 <= k <= n.
        """
        if not 1 <= k <= self.n:
            raise ValueError(f"OLSS of {k} steps from a teacher of {self.n}")
        low, high = 0.0, self.fit([0], [self.n])[1].item()
        nodes = self.jumps(low, k)
        if nodes is not None:
            return self._filled(nodes, k), low
        nodes = (0, self.n)
        for _ in range(60):
            # By orders of magnitude: bounds of many steps are tiny.
            middle = (max(low, high * 1e-6) * high) ** 0.5
            found = self.jumps(middle, k)
            if found is None:
                low = middle
            else:
                high, nodes = middle, found
            if high < low * (1 + 1e-9):
                break
        return self._filled(nodes, k), high

    def _filled(self, nodes: tuple[int, ...], k: int) -> tuple[int, ...]:
        """Exactly k steps: where the walk needed fewer, the longest are halved."""
        while len(nodes) <= k:
            i = max(range(len(nodes) - 1), key=lambda i: nodes[i + 1] - nodes[i])
            nodes = (*nodes[: i + 1], (nodes[i] + nodes[i + 1]) // 2, *nodes[i + 1 :])
        return nodes

    def rows(self, grid: Tensor, nodes: Sequence[int]) -> tuple[TableRow, ...]:
        """The rows over `nodes` of the teacher's grid."""
        times, rows = grid.tolist(), []
        for i, (node, to) in enumerate(itertools.pairwise(nodes)):
            start, *eps = self.fit(nodes[: i + 1], [to])[0][:, 0].tolist()
            rows.append(TableRow(times[node], times[to], (0.0,) * i + (start,), tuple(reversed(eps)), self.uses))
        return tuple(rows)


def fit_olss(
    path: Path, starts: Sequence[Starts], nfe: int, times: Tensor | None = None, clean: float | None = None
) -> Table:
    """The table of OLSS of nfe evaluations.

    Args:
        times: of the teacher, t_max to the clean end; 100 steps even in lambda unless given. The teacher is UniPC of order 2.
    """
    grid = fine_grid(path, 100, clean) if times is None else times
    teacher = [record(part, path, SolverSchedule.unipc(grid, 2), grid) for part in starts]
    regression = Regression.of(path, teacher)
    return Table(path, regression.rows(grid, regression.choose(nfe)[0]))
