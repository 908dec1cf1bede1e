"""Diffusion latent beam search (arXiv:2501.19252): K states, M children each by fresh noise, the best K of the K M go on.

A child is judged by the reward of the x0 that l deterministic DDIM steps reach from it, equal in time. The first evaluation of the look
ahead is the estimate of the child's own next step, so a step costs K M l evaluations (the official code makes K (1 + M l)). The last
step is DDIM's. K = M = 1 is plain sampling.

Every sample of the batch is a search of its own.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.estimate import Estimate
from fewstep.paths import Path
from fewstep.reward_search.found import Found, Reward, pick
from fewstep.solvers.ancestral import Ancestral
from fewstep.solvers.base import Solver
from fewstep.solvers.ddim import DDIM
from fewstep.stepping import fresh, look_ahead, step


@torch.no_grad()
def beam_search(
    denoise: Denoise,
    x: Tensor,
    path: Path,
    grid: Tensor,
    reward: Reward,
    children: int = 2,
    ahead: int = 6,
    solver: Solver | None = None,
    span: tuple[float, float] = (-math.inf, math.inf),
    y: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Found:
    """The best of K beams.

    Args:
        denoise: bound to the conditions of one batch of B.
        x: (K, B, ...) at grid[0]; K = 4 in the paper.
        grid: (n + 1,) decreasing times.
        children: M.  ahead: l; 1 judges by x0 of the child itself, and is enough for one-step students.
        solver: stochastic, of one estimate a step: `Ancestral` (DDIM with eta = 1) unless given.
        span: steps from times outside of (lo, hi] make one child of each state, without judgement.
        y: (B, ...) the anchor, on anchored paths.
    """
    solver, beams, times, nfe = solver or Ancestral(), len(x), grid.tolist(), 0
    states, known = x, None  # known: (x0, eps) of the states, (K, B, ...) each, where the look ahead has found them
    for i, (t, s) in enumerate(pairwise(times)):
        if known is None:
            seen = [denoise(state, t) for state in states]
            known, nfe = (torch.stack([e.x0 for e in seen]), torch.stack([e.eps for e in seen])), nfe + beams
        ends, searched = i == len(times) - 2, span[0] < t <= span[1]
        made = [
            step(path, DDIM(), state, Estimate(x0, eps), t, s, y)
            if ends
            else step(path, solver, state, Estimate(x0, eps), t, s, y, fresh(state, generator))
            for state, x0, eps in zip(states, *known, strict=True)
            for _ in range(1 if ends or not searched else children)
        ]
        states, known = torch.stack(made), None
        if len(made) > beams:
            looks = [look_ahead(denoise, child, path, s, ahead, y) for child in made]
            nfe += len(made) * ahead
            best = torch.stack([reward(x0) for x0, _ in looks]).topk(beams, 0).indices
            halves = (torch.stack([e.x0 for _, e in looks]), torch.stack([e.eps for _, e in looks]))
            states, known = pick(states, best), (pick(halves[0], best), pick(halves[1], best))
    values = torch.stack([reward(state) for state in states])
    chosen = values.argmax(0, keepdim=True)
    return Found(pick(states, chosen)[0], pick(values, chosen)[0], nfe)
