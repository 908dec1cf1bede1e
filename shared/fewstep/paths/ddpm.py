"""The discrete DDPM process (arXiv:2006.11239) as a path: t is the step index.

a(n) = sqrt(prod_{i <= n} (1 - beta_i)),  n = 0 .. N-1,  a(-1) = 1 (clean),   s = sqrt(1 - a^2)
log a is piecewise linear in t between the indices.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.paths.base import Path, Triple


@dataclass(frozen=True)
class DDPM(Path):
    """Table of betas: `linear` between beta_start and beta_end, or `scaled_linear` (linear in sqrt(beta), Stable Diffusion).

    t is in [-1, steps - 1]: -1 is clean data, steps - 1 the noisiest index; networks are given this index.
    """

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    scaled: bool = False

    @property
    def t_min(self) -> float:
        return -1.0

    @property
    def t_max(self) -> float:
        return self.steps - 1.0

    @cached_property
    def _log_a(self) -> Tensor:
        power = 0.5 if self.scaled else 1.0
        beta = torch.linspace(self.beta_start**power, self.beta_end**power, self.steps, dtype=torch.float64) ** (
            1 / power
        )
        return torch.cat([torch.zeros(1, dtype=torch.float64), 0.5 * torch.log1p(-beta).cumsum(0)])

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(left knot's log a, slope, distance from the left knot)."""
        table = self._log_a.to(t)
        left = (t + 1).floor().nan_to_num(0.0).clamp(0, self.steps - 1).long()
        return table[left], table[left + 1] - table[left], t + 1 - left

    def schedule(self, t: Tensor) -> Triple:
        knot, slope, frac = self._segment(t)
        log_a = knot + slope * frac
        return log_a.exp(), torch.zeros_like(t), (-torch.expm1(2 * log_a)).sqrt()

    def rates(self, t: Tensor) -> Triple:
        """Right-hand derivatives at the knots: a' = a slope, s' = -a a' / s."""
        (a, zero, s), (_, slope, _) = self.schedule(t), self._segment(t)
        return a * slope, zero, -(a**2) * slope / s
