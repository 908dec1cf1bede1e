"""Optimal boundary condition (arXiv:2305.15357): one start for all inputs of a deterministic restoration sampler.

    xi* = argmin over N random xi of  mean over a few pairs (x0, y) of  metric(sampler(xi, y), x0)

With a deterministic solver the best start depends little on the degraded input, so it is searched once and reused. No
training.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Boundary(NamedTuple):
    """noise: (1, ...) the chosen start; score: its mean metric; scores: (N,) of all candidates, in the order drawn."""

    noise: Tensor
    score: float
    scores: Tensor


def search_boundary(
    sampler: Callable[[Tensor, Tensor], Tensor],
    pairs: Sequence[tuple[Tensor, Tensor]],
    n: int,
    metric: Callable[[Tensor, Tensor], Tensor],
    generator: torch.Generator | None = None,
) -> Boundary:
    """The best of n standard normal starts.

    Args:
        sampler: (noise, y) -> x0 estimates, deterministic; noise: (B, ...) like the states, one start repeated over the
            batch.
        pairs: batches (x0, y), each (B, ...); x0 has the shape of the states and is all that `metric` compares with.
        n: number of candidates.
        metric: (estimate, x0) -> (B,), lower is better (LPIPS in the paper).
        generator: source of the candidates, drawn one by one where it lives, so that the first n of a longer search are
            the same.
    Raises:
        ValueError: no pairs, or n < 1.
    """
    if n < 1 or not pairs:
        raise ValueError(f"{n} candidates and {len(pairs)} pairs; allowed: at least one of each")
    first = pairs[0][0]
    device = first.device if generator is None else generator.device
    best, scores = None, []
    for _ in range(n):
        noise = torch.randn(first.shape[1:], dtype=first.dtype, device=device, generator=generator)[None].to(
            first.device
        )
        values = [metric(sampler(noise.expand(x0.shape), y), x0) for x0, y in pairs]
        scores.append(torch.cat(values).mean().item())
        if best is None or scores[-1] < best[0]:
            best = scores[-1], noise
    assert best is not None
    return Boundary(best[1], best[0], torch.tensor(scores, dtype=torch.float64))


def tile_noise(noise: Tensor, height: int, width: int) -> Tensor:
    """(..., h, w) repeated periodically and cropped to (..., height, width), for inputs of another size."""
    rows, columns = (torch.arange(k, device=noise.device) for k in (height, width))
    return noise[..., rows[:, None] % noise.shape[-2], columns % noise.shape[-1]]
