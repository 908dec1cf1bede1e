"""Rows by regression on given times: every row's weights are ordinary least squares for the teacher's next state.

    min over (c, w_0, ..., w_i)   | c x_i + sum_{j <= i} w_j E_j - teacher's state at t_{i+1} |^2

x_i and E_j are the student's own, so a row makes up for what earlier ones missed. K evaluations give K rows: cheap enough to
compare hundreds of grids.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.search.trajectories import Trajectory
from fewstep.solvers.table import Table, TableRow


@torch.no_grad()
def regressed(path: Path, teacher: Sequence[Trajectory], nodes: Sequence[int]) -> tuple[Table, float]:
    """The table over these nodes of the teacher's grid (first 0, last its end), and its root mean square error there."""
    times, b = teacher[0].grid[list(nodes)].tolist(), path.schedule(teacher[0].grid)[1].tolist()
    states = [t.states[0] for t in teacher]
    estimates: list[list[Tensor]] = [[] for _ in teacher]
    rows, error = [], float("inf")
    for i, (node, to) in enumerate(zip(nodes[:-1], nodes[1:], strict=True)):
        for part, x, found in zip(teacher, states, estimates, strict=True):
            full = x if part.starts.y is None else x + b[node] * part.starts.y
            found.insert(0, part.starts.denoise(full, times[i]).x0)
        columns = [torch.stack([v.flatten().double() for v in (x, *e)], 1) for x, e in zip(states, estimates, strict=True)]
        a, target = torch.cat(columns), torch.cat([t.states[to].flatten().double() for t in teacher])
        weights = torch.linalg.lstsq(a, target[:, None], driver="gelsd").solution[:, 0].tolist()
        rows.append(TableRow(times[i], times[i + 1], (weights[0],), tuple(weights[1:])))
        states = [
            x * weights[0] + sum(w * e for w, e in zip(weights[1:], found, strict=True))
            for x, found in zip(states, estimates, strict=True)
        ]
        error = ((a @ torch.tensor(weights, dtype=torch.float64) - target).square().mean().sqrt()).item()
    return Table(path, tuple(rows)), error
