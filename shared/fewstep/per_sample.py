"""The sampling loop with a time grid per sample: every solver written as `stages`, at times (B,).

Used where samples of one batch start at different noise levels (Gibbs chains, SDEdit of mixed strength). `sample` does
the same for one grid with all weights computed beforehand, and faster.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.nets.latent import latents_from
from fewstep.paths import Path, expand
from fewstep.solvers.base import Solver, Stage, data_form


def sample_each(
    denoise: Denoise,
    x: Tensor,
    path: Path,
    solver: Solver,
    grids: Tensor,
    y: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Integrate x: (B, ...) along grids: (B, n + 1), decreasing times of each sample; returns (B, ...) at grids[:, -1].

    Raises:
        ValueError: for solvers that write `rows` (steps that differ from one another), and for grids of another shape.
    """
    if type(solver).rows is not Solver.rows:
        raise ValueError(
            f"per-sample grids need a solver whose steps are alike, {type(solver).__name__} writes its own"
        )
    if grids.ndim != 2 or len(grids) != len(x) or grids.shape[1] < 2:
        raise ValueError(f"grids are (B, n + 1) with B = {len(x)} and n >= 1, got {tuple(grids.shape)}")
    grids = grids.to(x.device).double()
    times, allowed = grids.unbind(1), solver.lookback(grids.shape[1] - 1)
    z = x if y is None else x - expand(path.schedule(times[0])[1], x) * y
    zs, es = [z], []
    for i, (t, s) in enumerate(pairwise(times)):
        past = [times[i - k] if k <= min(i, allowed[i]) else t * math.nan for k in range(1, solver.past + 1)]
        stages = solver.stages(path, t, s, past)
        regular = solver.regular(path, t, s, len(stages))
        for j, stage in enumerate(stages):
            if stage.e:
                state = zs[0] if y is None else zs[0] + expand(path.schedule(stage.t)[1], x) * y
                with latents_from(generator):
                    es.insert(0, denoise(state, stage.t))
            new = _combine(stage, zs, [e.x0 if solver.uses == "x0" else e.eps for e in es], y)
            if stage.noise is not None:
                noise = torch.randn(x.shape, dtype=x.dtype, device=(generator or x).device, generator=generator)
                new = new + expand(stage.noise, x) * noise.to(x.device)
            if not regular.all():
                new = torch.where(like(regular, x), new, _instead(path, t, s, zs, es[0].x0) if j == 0 else zs[0])
            zs.insert(0, new)
        del zs[solver.past + len(stages) + 1 :], es[solver.past + len(stages) + 1 :]
    return zs[0] if y is None else zs[0] + expand(path.schedule(times[-1])[1], x) * y


def _combine(stage: Stage, zs: list[Tensor], halves: list[Tensor], y: Tensor | None) -> Tensor:
    """The weighted sum of one stage; terms of weight 0 drop out even where they are not finite."""
    terms = [*zip(stage.x, zs, strict=False), *zip(stage.e, halves, strict=False)]
    terms += [] if stage.y is None or y is None else [(stage.y, y)]
    new = torch.zeros_like(zs[0])
    for w, v in terms:
        new = new + torch.where(like(w == 0, v), 0.0, expand(w, v) * v)
    return new


def _instead(path: Path, t: Tensor, s: Tensor, zs: list[Tensor], x0: Tensor) -> Tensor:
    """The first-order step, for samples whose step is singular."""
    c_x, gain = data_form(path, t, s)
    return expand(c_x, x0) * zs[0] + expand(gain, x0) * x0


def like(mask: Tensor, x: Tensor) -> Tensor:
    """(B,) as (B, 1, ..., 1)."""
    return mask.reshape(-1, *[1] * (x.ndim - 1))
