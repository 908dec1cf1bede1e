"""LinearAG (arXiv:2312.12487, section 5): replace unconditional evaluations by a regression on the past.

    eps_u(k) ~ sum_{i <= k} beta_i eps_c(i) + sum_{i < k} gamma_i eps_u(i)     1 NFE at such a step, else 2

beta, gamma are scalars per step, fitted by least squares on a few recorded trajectories; replaced steps enter later
ones by their own estimate. The coefficients belong to the grid and to the solver they were recorded with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.guidance.rule import Branches, Mix, Rule
from fewstep.guidance.schedules import Scale, weight
from fewstep.prediction import Eps


@dataclass(frozen=True)
class LinearAG(Rule):
    """coefficients: of `fit_linear_ag`; per call k, () to evaluate, or (beta_0 .. beta_k, gamma_0 .. gamma_{k-1})."""

    cfg: Scale
    coefficients: tuple[tuple[float, ...], ...]

    def begin(self) -> Mix:
        conds: list[Tensor] = []
        unconds: list[Tensor] = []

        def mix(at: Branches) -> Estimate:
            k = len(conds)
            if k >= len(self.coefficients):
                raise ValueError(f"LinearAG has coefficients of {k} evaluations, this trajectory has more")
            row = self.coefficients[k]
            c, *rest = at(0) if row else at(0, 1)
            conds.append(c.eps)
            unconds.append(combination(row, [*conds, *unconds]) if row else rest[0].eps)
            return at.moved(c, (weight(self.cfg, at.t, at.x) - 1) * (c.eps - unconds[k]), Eps())

        return mix


def combination(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """sum_i w_i v_i."""
    if len(weights) != len(tensors):
        raise ValueError(f"{len(tensors)} tensors need as many coefficients, got {len(weights)}")
    out = tensors[0] * weights[0]
    for w, v in zip(weights[1:], tensors[1:], strict=True):
        out.add_(v, alpha=w)
    return out


@dataclass(frozen=True)
class Recorded(Rule):
    """`rule`, keeping eps of both branches of each step in the lists `cond` and `uncond` of `Mixed.mix`."""

    rule: Rule

    def begin(self) -> "Recording":
        return Recording(self.rule.begin())


class Recording:
    """A trajectory of `Recorded`."""

    def __init__(self, mix: Callable[[Branches], Estimate]) -> None:
        self.mix, self.cond, self.uncond = mix, list[Tensor](), list[Tensor]()

    def __call__(self, at: Branches) -> Estimate:
        c, u = at(0, 1)
        self.cond.append(c.eps.detach())
        self.uncond.append(u.eps.detach())
        return self.mix(at)


def fit_linear_ag(
    cond: Sequence[Tensor], uncond: Sequence[Tensor], replaced: Sequence[int], rcond: float = 1e-4
) -> tuple[tuple[float, ...], ...]:
    """Coefficients that replace the unconditional evaluations numbered `replaced`.

    Ordinary least squares in float64 over all elements of the batch, which must be at least as many as the coefficients
    of a step; of several solutions the smallest. Past estimates are nearly dependent, and plain least squares answers
    with coefficients of 10^3 to 10^5 that amplify every error (measured on mixtures), so directions with singular
    values below rcond times the largest are left out.

    Args:
        cond, uncond: eps of the branches at each evaluation, (B, ...) each: the lists of a `Recording`.
        replaced: evaluations to replace, >= 1; the paper alternates in the first half and replaces all in the second.
    """
    bad = [k for k in replaced if not 1 <= k < len(cond)]
    if bad or len(cond) != len(uncond):
        raise ValueError(f"{len(cond)} conditional and {len(uncond)} unconditional evaluations: cannot replace {bad}")
    cs, us = (torch.stack([v.double().flatten().cpu() for v in vs], 1) for vs in (cond, uncond))
    rows: list[tuple[float, ...]] = []
    for k in range(len(cond)):
        if k in replaced:
            basis = torch.cat([cs[:, : k + 1], us[:, :k]], 1)
            solution = torch.linalg.lstsq(basis, us[:, k : k + 1], rcond=rcond, driver="gelsd").solution
            rows.append(tuple(solution.flatten().tolist()))
            us[:, k] = (basis @ solution)[:, 0]  # what later steps will see in its place
        else:
            rows.append(())
    return tuple(rows)
