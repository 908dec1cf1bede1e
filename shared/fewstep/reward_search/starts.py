"""Search over start noises (arXiv:2501.09732): the sampler is fixed, better noise is looked for by a reward of its samples.

    best_of_n     n independent noises (the paper's random search)
    zero_order    a pivot n moves to the best of its neighbours  sqrt(1 - L^2) n + L xi,  which are standard normal again

Every sample of the batch is a search of its own.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.paths import expand
from fewstep.reward_search.found import Found, Reward
from fewstep.stepping import fresh

# noise (B, ...) -> samples (B, ...): `lambda noise: sample(denoise, path.start(noise, y), path, solver, grid, y)`.
Sampler = Callable[[Tensor], Tensor]


class _Best:
    """The best noise and sample of each search so far."""

    def __init__(self, sampler: Sampler, reward: Reward, noise: Tensor) -> None:
        self.sampler, self.reward, self.noise, self.calls = sampler, reward, noise, 1
        self.x0 = sampler(noise)
        self.value = reward(self.x0)

    def offer(self, noise: Tensor) -> None:
        """Take it where it is better."""
        x0 = self.sampler(noise)
        value = self.reward(x0)
        better = value > self.value
        mask = expand(better, x0).bool()
        self.noise, self.x0 = torch.where(mask, noise, self.noise), torch.where(mask, x0, self.x0)
        self.value, self.calls = torch.where(better, value, self.value), self.calls + 1

    def found(self, nfe: int) -> Found:
        return Found(self.x0, self.value, self.calls * nfe)


@torch.no_grad()
def best_of_n(
    sampler: Sampler, like: Tensor, reward: Reward, n: int, generator: torch.Generator | None = None, nfe: int = 1
) -> Found:
    """The best of n samples.

    Args:
        sampler: deterministic or not.
        like: (B, ...) of the shape, dtype and device of the noise.
        nfe: evaluations of one call of the sampler; multiplies what is counted.
    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"best of n needs n >= 1, got {n}")
    best = _Best(sampler, reward, fresh(like, generator))
    for _ in range(n - 1):
        best.offer(fresh(like, generator))
    return best.found(nfe)


@torch.no_grad()
def zero_order(
    sampler: Sampler,
    noise: Tensor,
    reward: Reward,
    iterations: int,
    neighbours: int = 4,
    radius: float = 0.3,
    generator: torch.Generator | None = None,
    nfe: int = 1,
) -> Found:
    """`iterations` moves of a pivot that begins at noise: (B, ...), 1 + iterations * neighbours calls of the sampler.

    The pivot stays where no neighbour is better.

    Args:
        sampler: deterministic, so that near noises have near samples.
        radius: L in (0, 1]; 1 is `best_of_n`.
        nfe: evaluations of one call of the sampler.
    Raises:
        ValueError: L outside (0, 1].
    """
    if not 0 < radius <= 1:
        raise ValueError(f"the radius of neighbours is in (0, 1], got {radius}")
    best = _Best(sampler, reward, noise)
    for _ in range(iterations):
        pivot = best.noise
        for _ in range(neighbours):
            best.offer(math.sqrt(1 - radius**2) * pivot + radius * fresh(noise, generator))
    return best.found(nfe)
