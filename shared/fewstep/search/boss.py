"""BOSS step sizes (arXiv:2312.16414): the K steps whose one-step errors along the teacher add up to the least.

c_ij = mean over starts of | first-order step from the teacher's x_i to t_j - the teacher's x_j |^2,   i < j
d_i(1) = c_in,    d_i(k) = min_j c_ij + d_j(k - 1)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.search.starts import Starts
from fewstep.search.times import candidate_times
from fewstep.search.trajectories import Trajectory, record
from fewstep.solvers.base import first_order
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.table import Table


@torch.no_grad()
def step_costs(path: Path, teacher: Sequence[Trajectory]) -> Tensor:
    """c: (n + 1, n + 1) in float64, infinite where j <= i."""
    grid = teacher[0].grid
    c = torch.full((len(grid), len(grid)), float("inf"), dtype=torch.float64)
    count = sum(len(t.states[0]) for t in teacher)
    for i in range(len(grid) - 1):
        for j in range(i + 1, len(grid)):
            step = first_order(path, grid[i], grid[j])
            gaps = (t.states[i] * step.x[0] + t.estimates[i].x0 * step.e[0] - t.states[j] for t in teacher)
            c[i, j] = sum(g.double().square().sum().item() for g in gaps) / count
    return c


def boss_steps(c: Tensor, k: int) -> tuple[tuple[int, ...], float]:
    """The k + 1 nodes from 0 to n of exactly k steps with the least total cost, and that cost.

    Args:
        c: (n + 1, n + 1) costs of a step from i to j; only j > i counts.
    Raises:
        ValueError: unless 1 <= k <= n.
    """
    n = len(c) - 1
    if not 1 <= k <= n:
        raise ValueError(f"{k} steps over {n} intervals; there may be 1 to {n}")
    c = torch.where(torch.ones_like(c, dtype=torch.bool).triu(1), c.double(), float("inf"))
    cost, choices = c[:, n], []
    for _ in range(k - 1):
        cost, choice = (c + cost).min(1)
        choices.append(choice.tolist())
    nodes = [0]
    for choice in reversed(choices):
        nodes.append(choice[nodes[-1]])
    return (*nodes, n), cost[0].item()


def search_boss(
    path: Path, starts: Sequence[Starts], nfe: int, times: Tensor | None = None, clean: float | None = None
) -> Table:
    """DDIM on BOSS's nfe steps out of the teacher's: DDIM on `times` (t_max to the clean end; at most 100 steps unless given)."""
    grid = _teacher_times(path, clean) if times is None else times
    costs = step_costs(path, [record(part, path, DDIM(), grid) for part in starts])
    return Table.of(DDIM(), path, grid[list(boss_steps(costs, nfe)[0])])


def _teacher_times(path: Path, clean: float | None) -> Tensor:
    times = candidate_times(path, clean, steps=100)
    if len(times) <= 101:
        return times
    return times[torch.linspace(0, len(times) - 1, 101).round().long()]
