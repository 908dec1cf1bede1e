"""ResShift (arXiv:2307.12348): the mean slides from x0 to the anchor y while noise grows.

    x_t = (1 - eta) x0 + eta y + kappa sqrt(eta) eps
    sqrt(eta) at index t = 0 .. T-1:  q0 (end / q0)^((t / (T-1))^p),   q0 = min(min_noise / kappa, min_noise)

Time is the step index, as networks are given it; t = -1 is clean (eta = 0). Between indices the same formula
holds, and sqrt(eta) rises linearly from 0 to q0 before the first one.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class ResidualShift(Path):
    """ResShift's path with T = steps indices, t in [-1, T - 1].

    kappa: noise scale; power: p; end: last sqrt(eta) (`etas_end` of the official code bounds the root, so eta_T = .9801);
    min_noise: noise level kappa sqrt(eta) of the first index; q0_cap: the older official branch caps q0 at sqrt(0.001).
    """

    anchored: ClassVar[bool] = True

    steps: int = 15
    kappa: float = 2.0
    power: float = 0.3
    end: float = 0.99
    min_noise: float = 0.04
    q0_cap: float | None = None

    @property
    def t_min(self) -> float:
        return -1.0

    @property
    def t_max(self) -> float:
        return self.steps - 1.0

    @property
    def q0(self) -> float:
        """The first sqrt(eta)."""
        q0 = min(self.min_noise / self.kappa, self.min_noise)
        return q0 if self.q0_cap is None else min(q0, self.q0_cap)

    def schedule(self, t: Tensor) -> Triple:
        if self.steps == 1:  # the formula divides by T - 1
            root = self.end * (t + 1)
        else:
            later = self.q0 * (self.end / self.q0) ** ((t / (self.steps - 1)).clamp(min=0) ** self.power)
            root = torch.where(t < 0, self.q0 * (t + 1), later)
        return 1 - root**2, root**2, self.kappa * root

    def rates(self, t: Tensor) -> Triple:
        """eta' = 2 r r',  r = sqrt(eta); r' = r log(end / q0) p t^(p-1) / (T-1)^p is infinite at t = 0+ where p < 1."""
        root = self.schedule(t)[2] / self.kappa
        if self.steps == 1:
            drt = torch.full_like(t, self.end)
        else:
            tau = (t / (self.steps - 1)).clamp(min=0)
            slope = torch.tensor(self.end / self.q0, dtype=t.dtype).log() * self.power / (self.steps - 1)
            drt = torch.where(t < 0, self.q0, root * slope * tau ** (self.power - 1))
        return -2 * root * drt, 2 * root * drt, self.kappa * drt
