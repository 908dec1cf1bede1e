"""FlowChef (arXiv:2412.00100): steer a flow by a loss of x0, without gradients of the network. 1 NFE per step.

    x_s = a_s x0(x_t) + b_s y + s_s eps(x_t) - rate grad_{x0} L(x0)

On a rectified flow this is the paper's update: x0 = x - t u, x <- x - rate grad L(x0), Euler with the same u. The
Jacobian of x0 with respect to x is taken to be the identity. The last step is not steered.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.guidance.rule import forward_prepare
from fewstep.paths import Path
from fewstep.sampling import Callback, anchored
from fewstep.solvers.base import State, advance
from fewstep.solvers.ddim import DDIM


def flowchef(
    denoise: Denoise,
    x: Tensor,
    path: Path,
    grid: Tensor,
    loss: Callable[[Tensor], Tensor],
    rate: float = 100.0,
    y: Tensor | None = None,
    callbacks: Iterable[Callback] = (),
) -> Tensor:
    """Sample from x at grid[0] to grid[-1] while lowering `loss`.

    Args:
        denoise: bound denoiser; no gradient flows through it.
        x: (B, ...).  grid: (n + 1,) decreasing times.  y: (B, ...), on anchored paths.
        loss: x0 (B, ...) -> (B,), e.g. the mean square of H x0 - measurement.
        rate: step size; 100 with a mean-reduced square in the official pixel script.
        callbacks: as in `sample`; the estimates they return are steered and used.
    """
    rows, callbacks = DDIM().plan(path, grid), tuple(callbacks)
    rows = rows if y is None else anchored(rows, path)
    forward_prepare(denoise, tuple(r.t for r in rows), x)
    for n, row in enumerate(rows, 1):
        with torch.no_grad():
            estimate = denoise(x, row.t)
            for callback in callbacks:
                estimate = callback.on_estimate(x, estimate, row)
            new = advance(State((x,)), estimate, row, None, (1, 1), y).xs[0]
        x = new if n == len(rows) else new - rate * _slope(loss, estimate.x0)
        stops = [callback.on_step(x, n, len(rows), row) for callback in callbacks]
        if any(stops):
            break
    return x


def _slope(loss: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
    """d loss/d x0, each sample its own."""
    with torch.enable_grad():
        free = x0.detach().requires_grad_()
        return torch.autograd.grad(loss(free).sum(), free)[0]
