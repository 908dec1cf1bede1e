"""Tables of betas as diffusers builds them, and its interpolation of sigma = s/a between the indices as a path."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple
from fewstep.paths.betas import Betas
from fewstep.paths.piecewise import interpolate, invert
from fewstep.paths.tabulated import log_alphas


@dataclass(frozen=True)
class SigmoidBetas(Betas):
    """start + sigmoid(u) (end - start), u even in [-6, 6] (GeoDiff, arXiv:2203.02923)."""

    steps: int = 1000
    start: float = 1e-4
    end: float = 0.02

    def __call__(self) -> Tensor:
        return torch.linspace(-6, 6, self.steps, dtype=torch.float64).sigmoid() * (self.end - self.start) + self.start


def _laplace(t: float) -> float:
    lam = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(lam) / (1 + math.exp(lam)))


BAR: dict[str, Callable[[float], float]] = {"exp": lambda t: math.exp(-12 * t), "laplace": _laplace}


@dataclass(frozen=True)
class BarBetas(Betas):
    """beta_n = 1 - bar((n + 1)/N)/bar(n/N), capped: `exp` bar = e^(-12 t); `laplace` as diffusers writes it."""

    steps: int = 1000
    bar: Literal["exp", "laplace"] = "exp"
    cap: float = 0.999

    def __call__(self) -> Tensor:
        bar = torch.tensor([BAR[self.bar](n / self.steps) for n in range(self.steps + 1)], dtype=torch.float64)
        return (1 - bar[1:] / bar[:-1]).clamp(max=self.cap)


@dataclass(frozen=True)
class LastBar(Betas):
    """`betas` with abar of the last index replaced: sigma stays finite on tables of zero terminal SNR."""

    betas: Betas
    bar: float = 2.0**-24

    def __call__(self) -> Tensor:
        beta = self.betas()
        before = (1 - beta[:-1]).prod()
        return torch.cat([beta[:-1], 1 - self.bar / before[None]])


@dataclass(frozen=True)
class SigmaTable(Path):
    """Index time in [-1, N - 1] with sigma = s/a, or log sigma, piecewise linear; a = 1/sqrt(1 + sigma^2), s = sigma a.

    From the clean end -1 to index 0 sigma itself is linear. Beyond the last index the last piece goes on, for grids
    that begin at a sigma above the table's.
    """

    betas: Betas
    between: Literal["sigma", "log_sigma"] = "sigma"

    @cached_property
    def _log_sigmas(self) -> Tensor:
        log_a = log_alphas(self.betas())
        return (-torch.expm1(2 * log_a)).log() / 2 - log_a

    @property
    def t_min(self) -> float:
        return -1.0

    @property
    def t_max(self) -> float:
        return len(self._log_sigmas) - 1.0

    def schedule(self, t: Tensor) -> Triple:
        table = self._log_sigmas.to(t)
        if self.between == "log_sigma":
            inside = interpolate(table, t)[0].exp()
        else:
            inside = interpolate(table.exp(), t)[0]
        sigma = torch.where(t < 0, table[0].exp() * (t + 1), inside)
        a = (1 + sigma**2).rsqrt()
        return a, torch.zeros_like(t), sigma * a

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        log, table = -lam.double(), self._log_sigmas.to(lam.device)
        inside = invert(table, log) if self.between == "log_sigma" else invert(table.exp(), log.exp())
        return torch.where(log < table[0], (log - table[0]).exp() - 1, inside)
