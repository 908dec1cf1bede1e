"""RED-diff (arXiv:2305.04391): an inverse problem as the optimisation of x0 under the denoiser. 1 NFE per iteration.

    minimise over mu    loss(mu) + w_t <eps(x_t, t) - n, mu>/D,      x_t = a mu + s n,  n fresh,  w_t = prior weight(s/a)

with eps - n held fixed: no gradient passes through the network. The official code has loss = mean (y - H mu)^2 / 2, one Adam step for
every time of a decreasing grid, and mu = H^+ y to begin with.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.guidance.rule import forward_prepare
from fewstep.paths import Path
from fewstep.stepping import fresh


def red_term(denoise: Denoise, mu: Tensor, t: float, path: Path, noise: Tensor) -> Tensor:
    """<sg(eps(x_t, t) - n), mu>/D, (B,): its gradient is the residual of the denoiser."""
    a, _, s = path.levels(t)
    with torch.no_grad():
        residual = denoise(a * mu.detach() + s * noise, t).eps - noise
    return (residual * mu).flatten(1).mean(1)


def red_diff(
    denoise: Denoise,
    x0: Tensor,
    path: Path,
    grid: Tensor,
    loss: Callable[[Tensor], Tensor],
    rate: float = 0.1,
    prior: float = 0.25,
    weight: Callable[[float], float] = float,
    betas: tuple[float, float] = (0.9, 0.99),
    generator: torch.Generator | None = None,
) -> Tensor:
    """mu after one step of Adam for each of grid[:-1].

    Args:
        denoise: bound denoiser on a path without anchor.
        x0: (B, ...) where mu begins, H^+ y.
        grid: (n + 1,) decreasing times.
        loss: mu (B, ...) -> (B,), each sample its own.
        rate, betas: of Adam; the official examples take 0.1 to 0.5.
        prior, weight: w_t; the official choices of `weight` are s/a itself, its square, square root, power 2/3, log(1 + .), min(., 1), 1.
    """
    times = tuple(grid.double().tolist()[:-1])
    forward_prepare(denoise, times, x0)
    mu = x0.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([mu], lr=rate, betas=betas)
    for t in times:
        a, _, s = path.levels(t)
        with torch.enable_grad():
            objective = loss(mu) + prior * weight(s / a) * red_term(denoise, mu, t, path, fresh(x0, generator))
        optimizer.zero_grad()
        objective.sum().backward()
        optimizer.step()
    return mu.detach()
