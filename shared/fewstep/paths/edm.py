"""Variance-exploding paths: EDM (arXiv:2206.00364), whose time is sigma, PriorEDM, and VE (arXiv:2011.13456)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class EDM(Path):
    """x_t = x0 + t eps: t is sigma itself, in [0, sigma_max]."""

    sigma_max: float = 80.0

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def schedule(self, t: Tensor) -> Triple:
        return torch.where(t.isnan(), t, 1.0), torch.zeros_like(t), t

    def rates(self, t: Tensor) -> Triple:
        return torch.zeros_like(t), torch.zeros_like(t), torch.ones_like(t)

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        return (-lam.double()).exp()


@dataclass(frozen=True)
class PriorEDM(EDM):
    """x_t = x0 + t (y + eps): noise around a prior mean y (CoMoSpeech, arXiv:2305.06908)."""

    anchored: ClassVar[bool] = True

    def schedule(self, t: Tensor) -> Triple:
        return torch.where(t.isnan(), t, 1.0), t, t

    def rates(self, t: Tensor) -> Triple:
        return torch.zeros_like(t), torch.ones_like(t), torch.ones_like(t)

    def start(self, noise: Tensor, y: Tensor | None = None, t: float | None = None) -> Tensor:
        """t (y + eps): x0 is left out, as on EDM, not replaced by y, which is the mean of the noise here."""
        return (self.t_max if t is None else t) * (noise if y is None else noise + y)


@dataclass(frozen=True)
class VE(Path):
    """x_t = x0 + sigma_min (sigma_max / sigma_min)^t eps, t in [0, 1]; the clean end keeps noise sigma_min."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def schedule(self, t: Tensor) -> Triple:
        s = self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        return torch.where(t.isnan(), t, 1.0), torch.zeros_like(t), s

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        return (-lam.double() - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
