"""A state taken one step at a time, anchor and all: by a solver, back to a noisier time, or ahead to its x0.

Loops that choose between states or change them on the way are made of these; `sample` runs whole plans.
"""

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.estimate import Estimate
from fewstep.paths import Path, expand
from fewstep.sampling import sample
from fewstep.solvers.ancestral import renoise
from fewstep.solvers.base import Solver, Stage
from fewstep.solvers.ddim import DDIM


def fresh(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise like a state, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def step(
    path: Path,
    solver: Solver,
    x: Tensor,
    estimate: Estimate,
    t: float | Tensor,
    s: float | Tensor,
    y: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """The state at s after one step of a solver of one estimate from x: (B, ...) at t; times are floats or (B,).

    noise: standard normal, for stochastic solvers; without it the step is their mean.
    """
    t, s = (torch.as_tensor(v, dtype=torch.float64, device=x.device).expand(len(x)) for v in (t, s))
    if y is None:
        return solver.step(path, x, estimate, t, s, noise)
    b, b_next = (expand(path.schedule(v)[1], x) for v in (t, s))
    return solver.step(path, x - b * y, estimate, t, s, noise) + b_next * y


def noised(path: Path, x: Tensor, t: float, u: float, noise: Tensor, y: Tensor | None = None) -> Tensor:
    """The state at the noisier time u whose law given x at t is the path's: (a_u/a_t) z + sqrt(s_u^2 - (a_u s_t/a_t)^2) xi."""
    times, one = torch.tensor([t, u], dtype=torch.float64), torch.ones((), dtype=torch.float64)
    kernel = renoise(path, Stage(times[0], (one,), (), one), times[0], times[1], 1.0)
    (_, b, _), (_, b_u, _) = path.levels(t), path.levels(u)
    z = x if y is None else x - b * y
    z = z * kernel.x[0].item() + noise * kernel.noise.item()  # pyright: ignore[reportOptionalMemberAccess]
    return z if y is None else z + b_u * y


def look_ahead(
    denoise: Denoise, x: Tensor, path: Path, t: float, steps: int, y: Tensor | None = None
) -> tuple[Tensor, Estimate]:
    """(x0 by DDIM in `steps` equal steps of time from x at t, the estimate at x itself). `steps` evaluations."""
    estimate = denoise(x, t)
    if steps == 1:
        return estimate.x0, estimate
    times = torch.linspace(t, path.t_min, steps + 1, dtype=torch.float64)
    second = step(path, DDIM(), x, estimate, t, times[1].item(), y)
    return sample(denoise, second, path, DDIM(), times[1:], y), estimate
