"""Polyak's momentum on DPM-Solver++(2M) (arXiv:2307.11118): its bracket in data form is averaged over the steps. 1 NFE per step.

    z_s = c_x z_t + E_1 u,     u = (1 - beta) u_before + beta (m_0 + D/2),     D = (m_0 - m_1)/r_0 as in dpm_multistep.py

u begins as the first estimate. u_before = (z_t - c_x' z_p)/E_1', primes of the step before, so it is a row over two states.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Solver, Stage, data_form, finite_or_zero


@dataclass(frozen=True)
class HeavyBall2M(Solver):
    """beta in (0, 1]: the weight of the new bracket; 1 is DPM-Solver++(2M). Below, the lag of u leaves order 1."""

    past = 1

    beta: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"HeavyBall2M: beta is in (0, 1], got {self.beta}")

    @property
    def order(self) -> int:
        return 2 if self.beta == 1 else 1

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        lam_t, lam_s, lam_p = (path.log_snr(v) for v in (t, s, past[0]))
        (c_x, gain), (c_before, gain_before) = data_form(path, t, s), data_form(path, past[0], t)
        r = finite_or_zero((lam_s - lam_t) / (2 * (lam_t - lam_p)))
        beta = torch.where(past[0].isnan(), torch.ones_like(gain), self.beta)
        kept = torch.where(past[0].isnan(), 0.0, (1 - self.beta) * gain / gain_before)
        to_past = torch.where(past[0].isnan(), 0.0, -kept * c_before)
        return (Stage(t, (c_x + kept, to_past), (beta * gain * (1 + r), -beta * gain * r)),)
