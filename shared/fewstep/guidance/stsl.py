"""Second-order Tweedie sampling with a surrogate loss, STSL (arXiv:2312.00852): the loss of x0 counts the spread of x0, too.

Given x_t, x0 has mean x0(x_t) and covariance (s/a)^2 (I + s^2 H), H the Hessian of log p_t. Where the loss is about a distance
|x0 - goal|^2, its mean is that of x0(x_t) plus the trace of the covariance, of which one probe xi estimates what depends on x_t:

    J(x) = loss(x0(x)) + curvature (s^4/a^2) xi^T (S(x + d xi) - S(x))/d,      S = -eps/s,   tr H = E[xi^T H xi]

    x <- x - rate grad J     `inner` times with fresh xi, then a step of the solver           inner (2 + gradients) + 1 NFE per step

The paper's code and coefficients are not public; the weight of the trace is the one derived above. A latent model's loss includes its
decoder.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.paths import Path
from fewstep.solvers.ancestral import Ancestral
from fewstep.solvers.base import Solver
from fewstep.stepping import fresh, step


def surrogate(
    denoise: Denoise,
    x: Tensor,
    t: float,
    path: Path,
    loss: Callable[[Tensor], Tensor],
    probe: Tensor,
    curvature: float = 1.0,
    width: float = 1e-3,
) -> Tensor:
    """J (B,). probe: (B, ...) with E[xi xi^T] = 1.  width: d, in units of s."""
    a, _, s = path.levels(t)
    here, d = denoise(x, t), width * s
    value = loss(here.x0)
    if curvature == 0.0 or a == 0.0:  # where x_t holds no x0, its spread is that of the data
        return value
    change = (here.eps - denoise(x + d * probe, t).eps) / (s * d)  # (S(x + d xi) - S(x))/d
    return value + curvature * s**4 / a**2 * (probe * change).flatten(1).sum(1)


def stsl(
    denoise: Denoise,
    x: Tensor,
    path: Path,
    grid: Tensor,
    loss: Callable[[Tensor], Tensor],
    rate: float,
    inner: int = 2,
    curvature: float = 1.0,
    width: float = 1e-3,
    solver: Solver | None = None,
    y: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """From x: (B, ...) at grid[0] to grid[-1]; about 50 steps in the paper.

    Args:
        denoise: bound denoiser, differentiable in x.
        loss: x0 (B, ...) -> (B,), each sample its own, e.g. |y - H x0|^2.
        rate: of the gradient; curvature: half the second derivative of the loss, 1 for |y - x0|^2; 0 leaves out the second order.
        solver: of one estimate a step: `Ancestral` unless given.
        y: (B, ...) the anchor, on anchored paths.
    """
    solver, times = solver or Ancestral(), grid.tolist()
    for t, s in pairwise(times):
        for _ in range(inner):
            with torch.enable_grad():
                free = x.detach().requires_grad_()
                value = surrogate(denoise, free, t, path, loss, fresh(x, generator).sign(), curvature, width)
                x = x.detach() - rate * torch.autograd.grad(value.sum(), free)[0]
        with torch.no_grad():
            x = step(path, solver, x, denoise(x, t), t, s, y, fresh(x, generator))
    return x
