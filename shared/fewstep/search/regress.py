"""Rows by regression on given times: every row's weights are ordinary least squares for the teacher's next state.

    min over (c, w_0, ..., w_i)   | c x_i + sum_{j <= i} w_j E_j - teacher's state at t_{i+1} |^2

x_i and E_j are the student's own, so a row makes up for what earlier ones missed (OLSS takes the teacher's, olss.py). K evaluations
give K rows: cheap enough to compare hundreds of grids.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.search.least_squares import solve, triangle
from fewstep.search.trajectories import Trajectory
from fewstep.solvers.table import Table, TableRow


@torch.no_grad()
def regressed(path: Path, teacher: Sequence[Trajectory], nodes: Sequence[int]) -> tuple[Table, float]:
    """The table over these nodes of the teacher's grid (first 0, last its end), and its root mean square error at the end."""
    times, b = teacher[0].grid[list(nodes)].tolist(), path.schedule(teacher[0].grid)[1].tolist()
    # Of every batch: the state, then the estimates, newest first.
    passed: list[list[Tensor]] = [[t.states[0]] for t in teacher]
    rows, left = [], float("inf")
    for t, s, node, to in zip(times[:-1], times[1:], nodes[:-1], nodes[1:], strict=True):
        for part, seen in zip(teacher, passed, strict=True):
            y = part.starts.y
            seen.insert(1, part.starts.denoise(seen[0] if y is None else seen[0] + b[node] * y, t).x0)
        columns = (
            torch.stack([v.flatten() for v in (*seen, part.states[to])], 1)
            for part, seen in zip(teacher, passed, strict=True)
        )
        r = triangle(columns)
        weights, square = solve(r, range(r.shape[1] - 1), [r.shape[1] - 1])
        c, *w = weights[:, 0].tolist()
        rows.append(TableRow(t, s, (c,), tuple(w)))
        for seen in passed:
            seen[0] = _combined(weights[:, 0].tolist(), seen)
        left = square.item()
    return Table(path, tuple(rows)), (left / sum(t.states[0].numel() for t in teacher)) ** 0.5


def _combined(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    x = tensors[0] * weights[0]
    for w, v in zip(weights[1:], tensors[1:], strict=True):
        x.add_(v, alpha=w)
    return x
