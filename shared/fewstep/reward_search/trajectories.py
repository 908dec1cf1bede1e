"""Search over paths (arXiv:2501.09732): states on the way are noised again, and the best of their children go on.

    N states at grid[start]; then, until the clean end:
        each is noised back by `back` nodes of the grid, M times, and sampled on for `ahead` > `back` nodes;
        of the N M children the N of the best reward of x0 go on

Every sample of the batch is a search of its own.
"""

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.paths import Path
from fewstep.reward_search.found import Found, Reward, pick
from fewstep.sampling import sample
from fewstep.solvers.base import Solver
from fewstep.stepping import fresh, noised


@torch.no_grad()
def search_trajectories(
    denoise: Denoise,
    x: Tensor,
    path: Path,
    solver: Solver,
    grid: Tensor,
    reward: Reward,
    start: int,
    back: int,
    ahead: int,
    children: int = 2,
    y: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Found:
    """The best of N trajectories.

    Args:
        denoise: bound to the conditions of one batch of B.
        x: (N, B, ...) at grid[0].
        solver: deterministic.  grid: (n + 1,) decreasing times.
        start: node where the search begins; back, ahead: nodes, 1 <= back <= start and back < ahead.
        children: M.
        y: (B, ...) the anchor, on anchored paths.
    Raises:
        ValueError: numbers of nodes that do not fit.
    """
    n, times = len(grid) - 1, grid.tolist()
    if not (1 <= back <= start < n and back < ahead):
        raise ValueError(
            f"a search over {n} steps needs 1 <= back <= start < {n} and back < ahead, got start {start}, {back}, {ahead}"
        )
    nfe = 0

    def leg(state: Tensor, i: int, j: int) -> Tensor:
        nonlocal nfe
        part = grid[i : j + 1]
        nfe += sum(bool(r.e) for r in solver.plan(path, part))
        return sample(denoise, state, path, solver, part, y, generator)

    states, i = torch.stack([leg(state, 0, start) for state in x]), start
    while i < n:
        u, v = i - back, min(i - back + ahead, n)
        tried = [
            leg(noised(path, state, times[i], times[u], fresh(state, generator), y), u, v)
            for state in states
            for _ in range(children)
        ]
        nfe += len(tried) * (v < n)
        values = torch.stack([reward(state if v == n else denoise(state, times[v]).x0) for state in tried])
        best = values.topk(len(x), 0)
        states, i = pick(torch.stack(tried), best.indices), v
    return Found(states[0], best.values[0], nfe)  # pyright: ignore[reportPossiblyUnboundVariable] (start < n)
