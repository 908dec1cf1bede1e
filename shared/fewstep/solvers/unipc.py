"""UniPC (arXiv:2302.04867): multistep predictor with a corrector that costs no evaluation. 1 NFE per step.

r = (l - lambda_t)/h is time within the step t -> s, m = x0 or eps, and m(r) the polynomial through the latest estimates:

    predictor  UniP-p   z_s = c_x z_t + sum_k k! E_{k+1} [r^k] m     m(0) = m_t, m(r_1), ..., m(r_{p-1}),   r_j = (lambda_-j - lambda_t)/h < 0
    corrector  UniC-p   the same with the node r = 1, where m is the estimate at the predicted z_s

E_k as in exponential.py. The estimate there also serves the next step, whose weights absorb the correction: both formulas share z_t,
so corrected minus predicted state is a combination of estimates.

The functions B(h) of the paper cancel wherever its system for the weights is solved. They act where the official code puts 1/2 for the
solution of the 1x1 system (predictor of order 2, corrector of order 1): the two-node weight E_2 becomes E_1/2 (`bh2`) or its limit
for small h (`bh1`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Half, Row, Solver, Stage, finite_or_zero, first_order
from fewstep.solvers.exponential import Step


def newton(moments: Sequence[Tensor], nodes: Sequence[Tensor]) -> list[Tensor]:
    """Weights of the values m_j at `nodes` in sum_k moments[k] m[r_0, ..., r_k], a sum of divided differences; elementwise.

    A node that is absent (NaN) or infinitely far drops out together with those after it.
    """
    weights = [torch.zeros_like(moments[0])] * len(nodes)
    for k, moment in enumerate(moments):
        for j in range(k + 1):
            gaps = [nodes[j] - nodes[i] for i in range(k + 1) if i != j]
            weights[j] = weights[j] + finite_or_zero(moment / math.prod(gaps, start=torch.ones_like(moment)))
    return weights


def interpolated(moments: Sequence[Tensor], nodes: Sequence[Tensor]) -> list[Tensor]:
    """Weights of the values at `nodes` in sum_k moments[k] c_k, where sum_k c_k r^k passes through them; elementwise."""
    basis, totals = [torch.ones_like(moments[0])], []  # basis: coefficients of prod_{i < k} (r - r_i)
    for node in nodes:
        totals.append(sum((c * m for c, m in zip(basis, moments, strict=False)), torch.zeros_like(moments[0])))
        basis = [up - node * c for up, c in zip([0.0, *basis], [*basis, 0.0], strict=True)]
    return newton(totals, nodes)


@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC-p; first order where lambda is infinite.

    p: order of the predictor; uses: the form, data or noise, given by name; corrector: correct every step but the last.
    b: `bh1`, `bh2` as the official code; `vary` has the exact weights everywhere; `vary_official` has the predictor of `vary` and the
    corrector of the official `vary_coeff`, which drops a row of the system and is of first order for p > 1 (measured).
    tail: orders min(p, steps left) at the end, as the official `lower_order_final`; the whole is then of second order.
    """

    p: int = 2
    uses: Half = field(default="x0", kw_only=True)
    b: Literal["bh1", "bh2", "vary", "vary_official"] = "bh2"
    corrector: bool = True
    tail: bool = True

    def __post_init__(self) -> None:
        if self.p < 1:
            raise ValueError(f"UniPC needs an order p >= 1, got {self.p}")
        if self.b not in ("bh1", "bh2", "vary", "vary_official"):
            raise ValueError(f"UniPC's b is bh1, bh2, vary or vary_official, not {self.b!r}")

    @property
    def order(self) -> int:
        """p, and one more with the corrector, after a fine start; from a first step of full size at most 2, and one more."""
        if self.b == "vary_official" and self.corrector and self.p > 1:
            return 1
        order = self.p + self.corrector
        return min(order, 2) if self.tail else order

    @property
    def past(self) -> int:
        return self.p if self.corrector else self.p - 1

    def _moments(self, step: Step, nodes: Sequence[Tensor]) -> list[Tensor]:
        """k! E_{k+1} with the official one half where exactly two nodes are given."""
        moments = [math.factorial(k) * step.moment(k + 1) for k in range(len(nodes))]
        if self.b in ("bh1", "bh2") and len(nodes) > 1:
            a, _, s = step.path.schedule(step.s)
            gain = step.first if self.b == "bh2" else step.h * (a if self.uses == "x0" else -s)
            pair = torch.ones_like(a, dtype=torch.bool) if len(nodes) == 2 else ~nodes[2].isfinite()
            moments[1] = torch.where(pair & step.h.isfinite(), gain / 2, moments[1])
        return moments

    def _predictor(self, step: Step, past: Sequence[Tensor]) -> list[Tensor]:
        """Weights of m_t, m_-1, ..."""
        nodes = [torch.zeros_like(step.h), *((step.path.log_snr(p) - step.path.log_snr(step.t)) / step.h for p in past)]
        return interpolated(self._moments(step, nodes), nodes)

    def _change(self, step: Step, past: Sequence[Tensor]) -> list[Tensor]:
        """Corrected minus predicted state: weights of m_s, m_t, m_-1, ..."""
        lam_t, h, zero = step.path.log_snr(step.t), step.h, torch.zeros_like(step.h)
        nodes = [zero, zero + 1, *((step.path.log_snr(p) - lam_t) / h for p in past)]
        moments = self._moments(step, nodes)
        base, new, *earlier = interpolated(moments, nodes)
        if self.b == "vary_official":
            base, new, *earlier = self._official(moments, nodes)
        predicted = self._predictor(step, past)
        return [new, *(c - p for c, p in zip((base, *earlier), predicted, strict=True))]

    def _official(self, moments: Sequence[Tensor], nodes: Sequence[Tensor]) -> list[Tensor]:
        """The corrector of `vary_coeff` with K = order: rows 1 .. K-1 for the past, and for the new estimate E_{K+1} at row K-1."""
        top = sum((n.isfinite().to(n) for n in nodes[1:]), torch.zeros_like(nodes[0]))  # K
        lower = [torch.where(top == k, 0.0, m) for k, m in enumerate(moments)]
        last = [torch.where(top == k + 1, moments[k + 1] / (k + 1), 0.0) for k in range(len(moments) - 1)]
        exact, new = interpolated(moments, nodes), interpolated([*last, torch.zeros_like(top)], nodes)[1]
        earlier = [torch.where(top > 1, w, 0.0) for w in interpolated(lower, nodes)[2:]]
        new = torch.where(top > 1, new, exact[1])
        return [moments[0] - new - sum(earlier, torch.zeros_like(new)), new, *earlier]

    def _weights(self, step: Step, past: Sequence[Tensor], before: Step, earlier: Sequence[Tensor]) -> list[Tensor]:
        """Predictor of `step` plus what c_x carries over of the correction of the step `before` it."""
        weights = self._predictor(step, past)
        if not self.corrector:
            return weights
        change = [finite_or_zero(w) for w in self._change(before, earlier)]
        return [c + step.c_x * w for c, w in zip([*weights, torch.zeros_like(change[0])], change, strict=True)]

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        """Weights at full order, as far as the past reaches."""
        step = Step(path, t, s, self.uses)
        before = Step(path, past[0], t, self.uses) if past else step
        return (Stage(t, (step.c_x,), tuple(self._weights(step, past[: self.p - 1], before, past[1:]))),)

    def _orders(self, n: int) -> list[int]:
        """1, 2, ..., p, ..., p; with a tail those from step p on are at most the number of steps left."""
        return [i if i < self.p else min(self.p, n + 1 - i) if self.tail else self.p for i in range(1, n + 1)]

    def rows(self, path: Path, grid: Tensor) -> Iterable[Row]:
        """A row predicts in the order of its own step, and corrects in that of the step before."""
        t, s, n = grid[:-1], grid[1:], len(grid) - 1
        order = torch.tensor([0, *self._orders(n)])
        back = [torch.cat([t.new_full((k,), math.nan), t])[:n] for k in range(1, self.p + 1)]
        past = [torch.where(order[1:] > k, b, math.nan) for k, b in enumerate(back[: self.p - 1], 1)]
        earlier = [torch.where(order[:-1] > k, b, math.nan) for k, b in enumerate(back[1:], 1)]
        step = Step(path, t, s, self.uses)
        weights = self._weights(step, past, Step(path, back[0], t, self.uses), earlier)
        regular, c_x = self.regular(path, t, s, 1).tolist(), step.c_x.tolist()
        for i, e in enumerate(torch.stack(weights, 1).tolist()):
            own = Row(t[i].item(), s[i].item(), (c_x[i],), tuple(e), uses=self.uses)
            yield own if regular[i] else first_order(path, t[i], s[i])
