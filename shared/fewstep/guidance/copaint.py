"""CoPaint (arXiv:2304.03322): at every level the state itself is optimised until its x0 fits what was measured. Gradients of the network.

    x <- x - rate_t grad [loss(x0(x, t)) + keep |x - x_t|^2]       `inner` times, from x = x_t;  then DDIM from x

    rate_t = rate growth^i a_t at step i; a try that raises the objective of a sample is repeated with 0.8 of its rate.

    time travel: after each `jump` steps the state is noised back by as many, `repeats` - 1 times, as in RePaint (arXiv:2201.09865)

The official loss is the sum of squares of what is known, |m (x0 - x_ref)|^2. The best of twenty starts by loss, which the official code
may begin with, is `reward_search.best_of_n` over x0 at the first time.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewstep.denoiser import Denoise
from fewstep.estimate import Estimate
from fewstep.paths import Path, expand
from fewstep.solvers.ddim import DDIM
from fewstep.stepping import fresh, look_ahead, noised, step

# Tries of a step with ever smaller rates, after which a sample stays where it is.
TRIES = 30


def copaint(
    denoise: Denoise,
    x: Tensor,
    path: Path,
    grid: Tensor,
    loss: Callable[[Tensor], Tensor],
    rate: float = 0.02,
    inner: int = 2,
    keep: float = 0.01,
    growth: float = 1.012,
    ahead: int = 1,
    jump: int = 10,
    repeats: int = 1,
    y: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """From x: (B, ...) at grid[0] to grid[-1]. At least inner + 1 evaluations with gradients per step.

    Args:
        denoise: bound denoiser, differentiable in x.
        grid: (n + 1,) decreasing times; 250 steps in the paper.
        loss: x0 (B, ...) -> (B,), each sample its own.
        ahead: DDIM steps, equal in time, that lead from x to the x0 of the loss; networks are recomputed in backward where it is not 1.
        jump, repeats: time travel; 10 and 2 in the paper's variant, 1 for none.
        y: (B, ...) the anchor, on anchored paths.
    """
    times, i = grid.tolist(), 0
    for j in visits(len(times) - 1, jump, repeats)[1:]:
        t, s = times[i], times[j]
        if j < i:
            x = noised(path, x, t, s, fresh(x, generator), y)
        else:
            x = fitted(denoise, x, path, t, loss, rate * growth**i * path.levels(t)[0], inner, keep, ahead, y)
            with torch.no_grad():
                x = step(path, DDIM(), x, denoise(x, t), t, s, y)
        i = j
    return x


def fitted(
    denoise: Denoise,
    x: Tensor,
    path: Path,
    t: float,
    loss: Callable[[Tensor], Tensor],
    rate: float,
    inner: int = 2,
    keep: float = 0.01,
    ahead: int = 1,
    y: Tensor | None = None,
) -> Tensor:
    """The state at t after `inner` steps of gradient descent, none of which raises the objective of a sample."""
    first, model = x.detach(), denoise if ahead == 1 else _recomputed(denoise)
    rates = x.new_full((len(x),), rate)

    def objective(v: Tensor) -> Tensor:
        return loss(look_ahead(model, v, path, t, ahead, y)[0]) + keep * (v - first).abs().square().flatten(1).sum(1)

    x = first
    for _ in range(inner):
        with torch.enable_grad():
            free = x.requires_grad_()
            now = objective(free)
            slope = torch.autograd.grad(now.sum(), free)[0]
        x, now = x.detach(), now.detach()
        with torch.no_grad():
            for _ in range(TRIES):
                new = x - expand(rates, x) * slope
                risen = ~(objective(new) <= now)
                if not risen.any():
                    break
                rates = torch.where(risen, 0.8 * rates, rates)
            else:
                new = torch.where(expand(risen, x).bool(), x, new)
        x = new
    return x


def visits(n: int, jump: int, repeats: int) -> list[int]:
    """The nodes of a grid of n steps in the order in which time travel goes through them, 0 first and n last."""
    left = {n - k: repeats - 1 for k in range(0, n - jump, jump)} if repeats > 1 else {}
    order = [0]
    while order[-1] < n:
        order.append(order[-1] + 1)
        i = order[-1]
        if left.get(i, 0) > 0:
            left[i] -= 1
            order += range(i - 1, i - jump - 1, -1)
    return order


def _recomputed(denoise: Denoise) -> Denoise:
    def halves(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        estimate = denoise(x, t)
        return estimate.x0, estimate.eps

    def model(x: Tensor, t: float | Tensor) -> Estimate:
        x0, eps = checkpoint(halves, x, t, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
        return Estimate(x0, eps)

    return model
