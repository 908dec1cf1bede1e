"""Multistep solvers with fixed weights on the DDIM step; the first of them is iPNDM (arXiv:2204.13902). 1 NFE per step.

    z_s = (a_s/a_t) z_t + a_s (rho_s - rho_t) u,     u = m u_before + sum_j w_j eps_j,     rho = s/a

u is the slope dz/drho of the step. The one before is a difference of past states, so momentum needs no state of its
own: u_before = (z_t/a_t - z_p/a_p) / (rho_t - rho_p). iPNDM has m = 0 and Adams-Bashforth weights

    1        (3, -1)/2        (23, -16, 5)/12        (55, -59, 37, -9)/24

which assume equal steps in rho: on other smooth grids every such solver with at least two weights is of second order.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Solver, Stage


def adams_bashforth(k: int, beta: float = 1.0) -> list[float]:
    """k weights, newest first: sum_m gamma_m D^m (1 + (1 - beta)/beta D) without D^k.

    D is the backward difference, gamma = 1, 1/2, 5/12, 3/8, ...
    beta < 1 corrects for estimates that lag behind as v_i = (1 - beta) v_(i-1) + beta eps_i does (arXiv:2307.11118).
    """
    gamma: list[float] = []
    for m in range(k):
        gamma.append(1.0 - sum(g / (m + 1 - j) for j, g in enumerate(gamma)))
    lag = (1.0 - beta) / beta
    weights, difference = [0.0] * k, [1.0]
    for m in range(k):
        scale = gamma[m] + (lag * gamma[m - 1] if m else 0.0)
        weights = [w + scale * d for w, d in zip(weights, difference + [0.0] * (k - m - 1), strict=True)]
        difference = [a - b for a, b in zip([*difference, 0.0], [0.0, *difference], strict=True)]
    return weights


@dataclass(frozen=True)
class FixedWeights(Solver):
    """Writes `slope` and `past`. Out of a = 0 the step is DDIM's."""

    uses = "eps"

    @abstractmethod
    def slope(self, i: int) -> tuple[float, list[float]]:
        """(m, [w_0, w_1, ...]) of a step before which i others were taken; i = past stands for all later ones."""

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        (at, _, st), (as_, _, ss) = path.schedule(t), path.schedule(s)
        before = torch.zeros(t.shape, dtype=torch.long, device=t.device)
        for p in past:
            before = before + ~p.isnan()
        slopes = [self.slope(i) for i in range(self.past + 1)]
        step = ss - as_ * st / at  # a_s (rho_s - rho_t)
        table = [[*w, *[0.0] * (self.past + 1 - len(w))] for _, w in slopes]
        e = tuple((step[..., None] * torch.tensor(table, dtype=step.dtype, device=t.device)[before]).unbind(-1))
        if all(m == 0.0 for m, _ in slopes):
            return (Stage(t, (as_ / at,), e),)
        m = torch.tensor([m for m, _ in slopes], dtype=step.dtype, device=t.device)[before]
        ap, _, sp = path.schedule(past[0])
        pull = torch.where(m == 0, 0.0, m * step / (st / at - sp / ap))
        return (Stage(t, (as_ / at + pull / at, torch.where(m == 0, 0.0, -pull / ap)), e),)


@dataclass(frozen=True)
class IPNDM(FixedWeights):
    """Adams-Bashforth over `points` estimates (4 in the papers), fewer in the first steps."""

    points: int = 4

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"IPNDM combines at least 1 estimate, not {self.points}")

    @property
    def order(self) -> int:
        return min(self.points, 2)

    @property
    def past(self) -> int:
        return self.points - 1

    def slope(self, i: int) -> tuple[float, list[float]]:
        return 0.0, adams_bashforth(i + 1)
