"""Rollover budget forcing (arXiv:2503.19385): noise is searched step by step, and what one step saves the next may spend.

    start     the best of K noises by the reward of x0 at the first time
    a step    children of the state by a stochastic step, one at a time, 1 NFE each: the estimate that is judged is also the
              next state's. A child better than all before moves on at once, and the rest of its quota to the next step;
              with the quota spent, the best child of the step moves on.

Every sample of the batch is a search of its own, at its own time. The last step has what is left of the budget.
"""

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.estimate import Estimate
from fewstep.paths import Path, expand
from fewstep.reward_search.found import Found, Reward, pick
from fewstep.solvers.ancestral import Ancestral
from fewstep.solvers.base import Solver
from fewstep.stepping import fresh, step


@torch.no_grad()
def rollover(
    denoise: Denoise,
    x: Tensor,
    path: Path,
    grid: Tensor,
    reward: Reward,
    nfe: int,
    solver: Solver | None = None,
    y: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Found:
    """The best x0 seen in exactly nfe evaluations of the batch.

    A flow is searched on a path with noise to choose from: the paper converts it to a VP one (`convert.OnPath`).

    Args:
        denoise: evaluated at times (B,), conditions bound.
        x: (K, B, ...) starts at grid[0]; 25 in the paper.
        grid: (n + 1,) decreasing times; x0 is estimated at the first n.
        solver: stochastic, of one estimate a step: `Ancestral` unless given.
        y: (B, ...) the anchor, on anchored paths.
    Raises:
        ValueError: a budget of less than one child per step.
    """
    solver, last = solver or Ancestral(), len(grid) - 2
    quota = (nfe - len(x)) // max(last, 1)
    if quota < 1 and last > 0 or nfe < len(x):
        raise ValueError(f"{nfe} evaluations are too few for {len(x)} starts and {last} steps")
    times = grid.to(x.device).double()
    level = torch.zeros(x.shape[1], dtype=torch.long, device=x.device)
    seen = [denoise(state, times[level]) for state in x]
    values = torch.stack([reward(e.x0) for e in seen])
    first = values.argmax(0, keepdim=True)
    # Of the state that children are made of: x, x0, eps.
    here = [pick(v, first)[0] for v in (x, torch.stack([e.x0 for e in seen]), torch.stack([e.eps for e in seen]))]
    best, found = pick(values, first)[0], here[1]
    of_step, child = torch.full_like(best, -torch.inf), here
    left = torch.full_like(level, quota)
    for _ in range(nfe - len(x) if last > 0 else 0):
        t, s = times[level], times[level + 1]
        state = step(path, solver, here[0], Estimate(here[1], here[2]), t, s, y, fresh(here[0], generator))
        estimate = denoise(state, s)
        value, left = reward(estimate.x0), left - 1
        child = _where(value > of_step, [state, estimate.x0, estimate.eps], child)
        of_step, better = torch.maximum(value, of_step), value > best
        best, found = torch.maximum(value, best), _where(better, [estimate.x0], [found])[0]
        move = (better | (left <= 0)) & (level < last - 1)
        here, level = _where(move, child, here), level + move.long()
        of_step, left = of_step.masked_fill(move, -torch.inf), left + quota * move.long()
    return Found(found, best, nfe if last > 0 else len(x))


def _where(mask: Tensor, a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Sample by sample; mask: (B,)."""
    return [torch.where(expand(mask, v).bool(), v, w) for v, w in zip(a, b, strict=True)]
