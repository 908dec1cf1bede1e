"""Residual denoising diffusion, RDDM (arXiv:2308.13712): the residual y - x0 and the noise enter on two clocks.

x_n = x0 + A_n (y - x0) + sqrt(B_n) eps,   n = 1 .. T        a = 1 - A,  b = A,  s = sqrt(B)

share of n steps:   decreased  n (2T + 1 - n)/(T (T + 1))     average  n/T     increased  n (n + 1)/(T (T + 1))
A = share of `alpha`,   B = sum_scale * share of `beta2`

Time is the index t = n - 1 that networks are given, in [-1, T - 1], -1 clean; the closed forms hold between the
indices. Without an anchor (y = 0) it is a path a x0 + s eps like any other.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple

Share = Literal["decreased", "average", "increased"]


@dataclass(frozen=True)
class ResidualDenoising(Path):
    """RDDM's path with T = steps indices; it ends at y + sqrt(sum_scale) eps (0.01 to restore, 1 to generate)."""

    anchored: ClassVar[bool] = True

    steps: int = 1000
    sum_scale: float = 0.01
    alpha: Share = "decreased"
    beta2: Share = "increased"

    @property
    def t_min(self) -> float:
        return -1.0

    @property
    def t_max(self) -> float:
        return self.steps - 1.0

    def _share(self, weights: Share, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(share of the first n steps, what is left, derivative in n)."""
        total = self.steps * (self.steps + 1)
        left = self.steps - n
        if weights == "decreased":
            return n * (left + self.steps + 1) / total, left * (left + 1) / total, (2 * left + 1) / total
        if weights == "increased":
            return n * (n + 1) / total, left * (n + self.steps + 1) / total, (2 * n + 1) / total
        return n / self.steps, left / self.steps, torch.full_like(n, 1 / self.steps)

    def schedule(self, t: Tensor) -> Triple:
        b, a, _ = self._share(self.alpha, t + 1)
        return a, b, (self.sum_scale * self._share(self.beta2, t + 1)[0]).sqrt()

    def rates(self, t: Tensor) -> Triple:
        """s' = B'/(2 s), infinite at the clean end."""
        db, dvar = self._share(self.alpha, t + 1)[2], self.sum_scale * self._share(self.beta2, t + 1)[2]
        return -db, db, dvar / (2 * self.schedule(t)[2])
