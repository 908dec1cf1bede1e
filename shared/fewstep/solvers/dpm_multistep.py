"""DPM-Solver (arXiv:2206.00927) and DPM-Solver++ (arXiv:2211.01095), multistep, orders 1 to 3. 1 NFE per step.

With m = x0 (DPM-Solver++, "data") or eps (DPM-Solver, "noise"), m_j the estimate j steps ago, h = lambda_s - lambda_t,
h_j the earlier steps in lambda, r_0 = h_1/h, r_1 = h_2/h and the exact weights E_k of exponential.py:

    k = 1   z_s = c_x z_t + E_1 m_0
    k = 2   ... + (E_1/2) D_0  (midpoint)   or   + E_2 D_0  (taylor),        D_0 = (m_0 - m_1)/r_0,  D_1 = (m_1 - m_2)/r_1
    k = 3   ... + E_2 (D_0 + r_0 B) + c E_3 B,                               B = (D_0 - D_1)/(r_0 + r_1)

B estimates h^2 m''/2. The official code, diffusers and k-diffusion take it for h^2 m'' (c = 1), which leaves "3M" of second
order; c = 2 is of third order and equals DEIS in lambda.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Half, LinearSolver, finite_or_zero
from fewstep.solvers.exponential import Step

# The weight of the first difference: E_1/2 ("dpmsolver", "midpoint" of the public codes) or the exact E_2 ("taylor", "heun").
Rule = Literal["midpoint", "taylor"]
# Whether the second difference of order 3 is weighted as in the official code or by Taylor's formula.
Variant = Literal["official", "exact"]


def difference_weights(
    e: tuple[Tensor, Tensor, Tensor], r0: Tensor, r1: Tensor, rule: Rule, variant: Variant
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of (m_0, m_1, m_2) from E_1, E_2, E_3 and the ratios of the earlier steps to this one, all elementwise.

    A ratio that is NaN (no past) or infinite (that step left a = 0) lowers the order; so does h = inf, where both ratios vanish.
    """
    e1, e2, e3 = e
    slope = torch.where(r1.isfinite(), e2, e2 if rule == "taylor" else e1 / 2)
    bend = finite_or_zero((e2 * r0 + (2 if variant == "exact" else 1) * e3) / (r0 + r1))
    w0, w1 = finite_or_zero((slope + bend) / r0), finite_or_zero(bend / r1)
    return e1 + w0, -w0 - w1, w1


@dataclass(frozen=True)
class Multistep(LinearSolver):
    """What the deterministic and the stochastic multistep solvers of the family share.

    Args:
        k: 1, 2 or 3, the number of estimates that a step combines. Start-up takes k = 1, 2, ...
        uses: the half of the estimate that is extrapolated: "x0" (DPM-Solver++) or "eps" (DPM-Solver).
        rule: weight of the first difference where two estimates are combined.
        variant: of k = 3: "official" (second order) or "exact" (third).
        tail: highest k of the last steps: (2, 1) is `lower_order_final` of the public codes, (1,) is diffusers' `euler_at_final`.
        below: apply the tail only to grids of fewer steps than this (official code 10, diffusers 15); None always.
    """

    k: int = 2
    uses: Half = "x0"
    rule: Rule = "midpoint"
    variant: Variant = "official"
    tail: tuple[int, ...] = ()
    below: int | None = None

    def __post_init__(self) -> None:
        if self.k not in (1, 2, 3):
            raise ValueError(f"{type(self).__name__} combines k = 1, 2 or 3 estimates, not {self.k}")
        if self.rule not in ("midpoint", "taylor") or self.variant not in ("official", "exact"):
            raise ValueError(
                f"{type(self).__name__} takes rule midpoint or taylor and variant official or exact, "
                f"not {self.rule} and {self.variant}"
            )

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The measured one: 3M with the official second difference is of second order."""
        return 2 if self.k == 3 and self.variant == "official" else self.k

    @property
    def past(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.k - 1

    def lookback(self, n: int) -> Sequence[int]:
        caps = self.tail[-n:] if self.below is None or n < self.below else ()
        return [self.k - 1] * (n - len(caps)) + [min(self.k, cap) - 1 for cap in caps]

    def ratios(self, path: Path, t: Tensor, h: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(r_0, r_1): earlier steps in lambda over this one, NaN where there is none."""
        never = torch.full_like(h, torch.nan)
        lam = [path.log_snr(v) for v in (t, *past)] + [never] * (3 - len(past))
        return (lam[0] - lam[1]) / h, (lam[1] - lam[2]) / h


@dataclass(frozen=True)
class DPMMultistep(Multistep):
    """Deterministic, data or noise form; see the module for the weights and `Multistep` for the arguments."""

    def weights(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        step = Step(path, t, s, self.uses)
        moments = step.first, step.moment(2), step.moment(3)
        return step.c_x, difference_weights(moments, *self.ratios(path, t, step.h, past), self.rule, self.variant)


@dataclass(frozen=True)
class DPMpp3M(DPMMultistep):
    """DPM-Solver++(3M) as the public codes have it; `variant="exact"` is of third order."""

    k: int = 3


@dataclass(frozen=True)
class DPM2M(DPMMultistep):
    """Multistep DPM-Solver-2 (noise form)."""

    uses: Half = "eps"


@dataclass(frozen=True)
class DPM3M(DPMMultistep):
    """Multistep DPM-Solver-3 (noise form); `variant="exact"` is of third order and equals diffusers' DEIS."""

    k: int = 3
    uses: Half = "eps"
