"""Denoising Langevin Gibbs, DMCMC (arXiv:2209.14593): MCMC over pairs (x, sigma) instead of a path from noise to data.

    x     <- x + (eta/2) score(x, sigma) + sqrt(eta) xi     one Langevin step,  score = (x0 - x)/sigma^2
    sigma <- p(sigma | x)                                   exactly, by a classifier, or by an estimate from norms

The chain walks between noise levels and passes near the data again and again. Every few sweeps the state of the
smallest sigma seen is handed to a solver, which needs few steps from there; the chain itself goes on, so that later
samples pay no burn-in. Paths are those with a = 1 (EDM, VE): x = x0 + sigma eps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.paths import Path, expand


class Chain(NamedTuple):
    """x: (B, ...) states; sigma: (B,) their noise levels."""

    x: Tensor
    sigma: Tensor


class NoiseLevel(ABC):
    """How sigma is found from x."""

    @abstractmethod
    def __call__(self, x: Tensor, x0: Tensor, generator: torch.Generator | None) -> Tensor:
        """sigma (B,) of states x, given the last estimate x0 (made before the Langevin step)."""


@dataclass(frozen=True)
class DrawnLevel(NoiseLevel):
    """A draw from p(sigma | x) over given levels, or its mode.

    logits: x -> (B, K), log p(x | sigma_k) + log p(sigma_k) up to a constant: exact for a mixture, or a noise-level
        classifier.
    levels: the K values of sigma. The paper has 1000, log-spaced from 0.01.
    mode: take the most probable level, as the published sampler does, in place of a draw.
    """

    logits: Callable[[Tensor], Tensor]
    levels: tuple[float, ...]
    mode: bool = False

    def __call__(self, x: Tensor, x0: Tensor, generator: torch.Generator | None) -> Tensor:
        logits = self.logits(x)
        if self.mode:
            index = logits.argmax(1)
        else:
            device = logits.device if generator is None else generator.device
            index = torch.multinomial(logits.softmax(1).to(device), 1, generator=generator)[:, 0].to(x.device)
        return torch.tensor(self.levels, dtype=torch.float64, device=x.device)[index]


@dataclass(frozen=True)
class NormLevel(NoiseLevel):
    """sigma = gain |x - x0| / sqrt(d), within [low, high]: sharp in high dimension, no second network.

    Far above the fine structure of the data one Langevin step multiplies |x - x0|^2 by 1 + step^2/4 (power 2): with
    gain = 1 the level creeps up for ever. The default anneals: sigma falls by about 7 % a sweep at step = 0.5 and stays
    at `low`, from where a solver should continue. A `low` much below the spread of the data freezes the chain before it
    has mixed.
    """

    low: float
    high: float = 80.0
    gain: float = 0.9

    def __call__(self, x: Tensor, x0: Tensor, generator: torch.Generator | None) -> Tensor:
        return (self.gain * (x - x0).abs().double().square().flatten(1).mean(1).sqrt()).clamp(self.low, self.high)


def gibbs(
    denoise: Denoise,
    chain: Chain,
    path: Path,
    level: NoiseLevel,
    sweeps: int = 10,
    step: float = 0.25,
    power: float = 2.0,
    generator: torch.Generator | None = None,
) -> tuple[Chain, Chain]:
    """`sweeps` Gibbs sweeps, 1 NFE each: (where the chains are, the state of each chain at its smallest sigma).

    Args:
        chain: where to go on: the first element of an earlier result, or any start such as noise at sigma_max.
        level: how sigma follows x.
        step, power: eta = step sigma^power. Power 0 is the published constant; with 2 the relative error of the
            Langevin step is the same at all levels (its stationary variance is too large by a factor 1/(1 - step/4) at
            most).
    Raises:
        ValueError: paths with a other than 1.
    """
    a, _, _ = path.schedule(torch.tensor([path.t_min, path.t_max], dtype=torch.float64))
    if not (a == 1).all():
        raise ValueError(f"Gibbs chains live on paths with a = 1 (EDM, VE), {type(path).__name__} has a = {a.tolist()}")
    x, sigma = chain
    best = Chain(x, torch.full_like(sigma, math.inf))
    for _ in range(sweeps):
        x0 = denoise(x, path.time_of_log_snr(-sigma.log())).x0
        eta = step * sigma**power
        device = x.device if generator is None else generator.device
        noise = torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)
        x = x + expand(eta / (2 * sigma**2), x) * (x0 - x) + expand(eta.sqrt(), x) * noise
        sigma = level(x, x0, generator)
        cleaner = sigma <= best.sigma  # the later of equals has mixed longer
        best = Chain(torch.where(expand(cleaner, x).bool(), x, best.x), torch.where(cleaner, sigma, best.sigma))
    return Chain(x, sigma), best


def karras_from(path: Path, sigma: Tensor, n: int, rho: float = 7.0, sigma_min: float = 0.01) -> Tensor:
    """Per-sample grids (B, n + 1) for `sample_each`: n times from sigma: (B,) to sigma_min as in EDM, then the clean
    end.

    Chains already below sigma_min start there all the same: their first times decrease from their own sigma.
    """
    low = torch.minimum(sigma / 2, torch.full_like(sigma, sigma_min))
    i = torch.linspace(0, 1, n, dtype=torch.float64, device=sigma.device)
    r = 1 / rho
    values = (sigma[:, None] ** r + i * (low[:, None] ** r - sigma[:, None] ** r)) ** rho
    times = path.time_of_log_snr(-values.log())
    return torch.cat([times, torch.full_like(times[:, :1], path.t_min)], 1)
