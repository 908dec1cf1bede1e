"""Exact worlds that benches measure solvers on: Gaussian mixtures in 2, 64 and 3072 dimensions, plain and guided."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.bench.quick_mixture import AtFloatTimes
from fewstep.denoiser import Denoise
from fewstep.paths import Path
from fewstep.toy import Mixture, correlated, ring


@dataclass(frozen=True)
class World:
    """A bound denoiser on a path, with starting states at t_max, and data where the model's distribution is known.

    denoise: (x, t) -> Estimate; start: (n, generator) -> (n, D) at path.t_max; data: (n, generator) -> (n, D), or None under guidance.
    """

    path: Path
    denoise: Denoise
    start: Callable[[int, torch.Generator], Tensor]
    data: Callable[[int, torch.Generator], Tensor] | None


def mixture_worlds(path: Path) -> dict[str, World]:
    """name -> world: dimensions 2 (ring of 8), 64 (10 correlated components), 3072 (10 components with an image-like spectrum).

    Guided: the condition picks the first components (2 of 8, or 3 of 10), cfg 7.5.
    """
    worlds = {}
    for everything, chosen in ((ring(path, std=0.15), 2), (correlated(path), 3), (_spectral(path), 3)):
        dim, start = everything.means.shape[1], _start(everything)
        worlds[f"{dim}-d, cfg 1"] = World(path, AtFloatTimes(everything), start, everything.draw)
        worlds[f"{dim}-d, cfg 7.5"] = World(
            path, AtFloatTimes(everything, _first(everything, chosen), 7.5), start, None
        )
    return worlds


def _start(world: Mixture) -> Callable[[int, torch.Generator], Tensor]:
    """x = s eps at t_max: what a sampler is really given (a x0 is left out)."""

    def start(n: int, generator: torch.Generator) -> Tensor:
        return world.path.start(torch.randn(n, world.means.shape[1], dtype=torch.float64, generator=generator))

    return start


def _first(world: Mixture, chosen: int) -> Mixture:
    """The first components alone, equally likely."""
    ev, q = world.ev[:chosen], world.q
    covs = ev if q is None else (q[:chosen] * ev[:, None]) @ q[:chosen].mT
    return Mixture(world.path, world.means[:chosen], covs)


def _spectral(path: Path, dim: int = 3072, k: int = 10) -> Mixture:
    """Independent coordinates whose standard deviations fall as 1/frequency, like the spectrum of pictures; unit total variance."""
    g = torch.Generator().manual_seed(3072)
    std = 1 / (1 + torch.arange(dim, dtype=torch.float64) / 16)
    std = std / std.square().mean().sqrt()
    means = 0.7 * std * torch.randn(k, dim, dtype=torch.float64, generator=g)
    scale = 0.4 + 0.6 * torch.rand(k, 1, dtype=torch.float64, generator=g)
    return Mixture(path, means, (0.7 * scale * std).square())
