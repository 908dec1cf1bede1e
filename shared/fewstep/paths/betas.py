"""Tables of betas of discrete diffusion: beta_n = 1 - abar_n / abar_(n-1), n = 0 .. N-1, as frozen objects."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Betas(ABC):
    """() -> (N,) float64 in (0, 1]; only the last may be 1, which leaves no signal there."""

    @abstractmethod
    def __call__(self) -> Tensor: ...


@dataclass(frozen=True)
class LinearBetas(Betas):
    """Linear between start and end (DDPM, arXiv:2006.11239)."""

    steps: int = 1000
    start: float = 1e-4
    end: float = 0.02

    def __call__(self) -> Tensor:
        return torch.linspace(self.start, self.end, self.steps, dtype=torch.float64)


@dataclass(frozen=True)
class ScaledLinearBetas(Betas):
    """Linear in sqrt(beta) (latent diffusion; Stable Diffusion's values)."""

    steps: int = 1000
    start: float = 0.00085
    end: float = 0.012

    def __call__(self) -> Tensor:
        return torch.linspace(self.start**0.5, self.end**0.5, self.steps, dtype=torch.float64) ** 2


@dataclass(frozen=True)
class CosineBetas(Betas):
    """abar(t) = cos^2((t + o)/(1 + o) pi/2) at t = n/N, capped (arXiv:2102.09672; `squaredcos_cap_v2`)."""

    steps: int = 1000
    offset: float = 0.008
    cap: float = 0.999

    def __call__(self) -> Tensor:
        t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        bar = ((t + self.offset) / (1 + self.offset) * (math.pi / 2)).cos() ** 2
        return (1 - bar[1:] / bar[:-1]).clamp(max=self.cap)


@dataclass(frozen=True)
class GivenBetas(Betas):
    """Betas as they are."""

    values: tuple[float, ...] = ()

    def __call__(self) -> Tensor:
        beta = torch.tensor(tuple(self.values), dtype=torch.float64)
        if len(beta) < 2 or not ((beta > 0) & (beta < 1)).all():
            raise ValueError(f"betas are at least 2 numbers in (0, 1), got {list(self.values)}")
        return beta


@dataclass(frozen=True)
class ZeroTerminalSNR(Betas):
    """Betas rescaled so that no signal is left at the last index (arXiv:2305.08891, algorithm 1): sqrt(abar) is shifted
    to 0 there and scaled to keep its first value."""

    betas: Betas = ScaledLinearBetas()

    def __call__(self) -> Tensor:
        a = (1 - self.betas()).cumprod(0).sqrt()
        bar = ((a - a[-1]) * (a[0] / (a[0] - a[-1]))) ** 2
        return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])
