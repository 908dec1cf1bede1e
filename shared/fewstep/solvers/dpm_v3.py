"""DPM-Solver-v3 (arXiv:2310.13268): a multistep for the part of the network that its statistics l, s, b do not predict. 1 NFE per step.

With f = (1 - l) z - x0 at the evaluated states, z = x/a, and L, S, B of `ems.Nodes`, the ODE from lambda_t to lambda_s is solved by

    x_s = a_s e^(L_t - L_s) (x_t/a_t - INT kernel (g + beta)),     kernel = e^((L + S) - (L + S)_t)
    g = e^(S_t - S) f - beta,     beta = e^(S_t) (B - B_t)

where g is a polynomial in lambda through the latest nodes (a constant in first order) and INT the trapezoidal rule over the nodes of
the statistics. (l, s, b) = (1, 0, 0) is the data form of the exponential multistep and (0, -1, 0) its noise form.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Row, Solver, Stage, Weight, first_order
from fewstep.solvers.ems import EMS, Nodes
from fewstep.solvers.unipc import interpolated, newton


class Sum(NamedTuple):
    """sum_k f[k] f_k + constant over the latest evaluated states, newest first."""

    f: tuple[Tensor, ...] = ()
    constant: Tensor | float = 0.0

    def plus(self, c: Weight, other: "Sum") -> "Sum":
        """self + c other."""
        pairs = zip_longest(self.f, other.f, fillvalue=torch.zeros((), dtype=torch.float64))
        return Sum(tuple(u + c * v for u, v in pairs), self.constant + c * other.constant)


@dataclass(frozen=True)
class Leap:
    """The step from node i to node k of the statistics."""

    nodes: Nodes
    i: int
    k: int

    @property
    def decay(self) -> Tensor:
        return (self.nodes.L[self.i] - self.nodes.L[self.k]).exp()

    def _beta(self, j: int | slice) -> Tensor:
        return self.nodes.S[self.i].exp() * (self.nodes.B[j] - self.nodes.B[self.i])

    def integral(self, used: Sequence[int], pseudo: bool) -> Sum:
        """INT kernel (g + beta) for g through the nodes `used`, in their order.

        pseudo: the k-th divided difference over the first k + 1 nodes stands for the k-th Taylor coefficient of g.
        """
        lam, over = self.nodes.lam, slice(self.i, self.k + 1)
        exponent = self.nodes.L[over] + self.nodes.S[over]
        kernel = (exponent - exponent[0]).exp()
        ahead = (lam[over] - lam[self.i]).reshape(-1, *[1] * (kernel.ndim - 1))

        def trapezoid(v: Tensor) -> Tensor:
            return torch.trapezoid(kernel * v, dx=(lam[1] - lam[0]).item(), dim=0)

        moments = [trapezoid(ahead**power) for power in range(len(used))]
        weights = (newton if pseudo else interpolated)(moments, [lam[j] - lam[self.i] for j in used])
        f = (w * (self.nodes.S[self.i] - self.nodes.S[j]).exp() for w, j in zip(weights, used, strict=True))
        constant = trapezoid(self._beta(over))
        for w, j in zip(weights, used, strict=True):
            constant = constant - w * self._beta(j)
        return Sum(tuple(f), constant)


@dataclass(frozen=True)
class DPMSolverV3(Solver):
    """DPM-Solver-v3. Grid times are snapped to the nearest node of `ems`; a step that starts or ends beyond the nodes (so at s = 0
    or a = 0) is DDIM's.

    p: order of the predictor; corrector: refit every step but the last with the estimate at its end, which costs no evaluation.
    p_pseudo, c_pseudo: divided differences in place of derivatives in predictor and corrector; with c_pseudo the corrector also has
    one node more, so that it acts at p = 1 too. tail: orders min(p, steps left) at the end (`lower_order_final`).
    The trapezoidal rule leaves an error of the square of the node distance that no number of steps removes.
    """

    ems: EMS
    p: int = 2
    p_pseudo: bool = False
    corrector: bool = True
    c_pseudo: bool = False
    tail: bool = True

    def __post_init__(self) -> None:
        if self.p < 1:
            raise ValueError(f"DPM-Solver-v3 needs an order p >= 1, got {self.p}")

    @property
    def order(self) -> int:
        """Two at most: the first step has one node, and is of first order."""
        return 1 if self.p == 1 and not (self.corrector and self.c_pseudo) else 2

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        raise ValueError("DPMSolverV3 steps between the nodes of its statistics, not at per-sample times: use sample()")

    def rows(self, path: Path, grid: Tensor) -> Iterable[Row]:
        nodes, n = self.ems.nodes(), len(grid) - 1
        t, at = self._snapped(path, grid)
        a, _, _ = path.schedule(t)
        covered, due = 0, Sum()  # consecutive times on nodes up to t_i; the correction of the step before
        for i in range(n):
            covered = covered + 1 if at[i] >= 0 else 0
            order = min(covered, self.p, n - i if self.tail else self.p)
            row, step, fresh = first_order(path, t[i], t[i + 1]), Sum(), Sum()
            if order and at[i + 1] >= 0:
                leap, gain = Leap(nodes, at[i], at[i + 1]), -a[i + 1]
                used = at[i::-1][:order]
                step = Sum().plus(gain * leap.decay, leap.integral(used, self.p_pseudo))
                row = row._replace(x=(a[i + 1] / a[i] * leap.decay,), e=(0.0,))
                fresh = self._correction(leap, used, gain * leap.decay, step)
            step = step.plus(row.x[0], due)
            to_f = [(1 - nodes.l[at[i - k]]) / a[i - k] for k in range(len(step.f))]  # f = to_f X - x0
            yield _as_row(row, step, to_f)
            due = fresh

    def _snapped(self, path: Path, grid: Tensor) -> tuple[Tensor, list[int]]:
        """The times, and their nodes (-1 beyond all)."""
        at, exact = self.ems.place(path.log_snr(grid))
        if ((at[1:] == at[:-1]) & (at[1:] >= 0)).any():
            raise ValueError(
                f"two of {len(at)} grid times are nearest to the same of {len(self.ems.l)} EMS nodes: take fewer steps or more nodes"
            )
        snapped = path.time_of_log_snr(self.ems.nodes().lam[at.clamp(min=0)])
        return torch.where((at < 0) | exact, grid, snapped), at.tolist()

    def _correction(self, leap: Leap, used: Sequence[int], gain: Tensor, predicted: Sum) -> Sum:
        """Corrected minus predicted state, over the states at leap.k, leap.i, ...: both share the node leap.i and its state."""
        count = len(used) + self.c_pseudo
        if not self.corrector or count < 2:
            return Sum()
        source, *earlier = used
        own = leap.integral([source, leap.k, *earlier[: count - 2]], self.c_pseudo)
        first, new, *rest = own.f
        corrected = Sum().plus(gain, Sum((new, first, *rest), own.constant))
        return corrected.plus(-1.0, Sum((torch.zeros_like(new), *predicted.f), predicted.constant))


def _as_row(row: Row, step: Sum, to_f: Sequence[Tensor]) -> Row:
    """row + step, with f = to_f X - x0 at each of its states."""
    zeros = zip_longest(row.x, row.e, step.f, to_f, fillvalue=torch.zeros((), dtype=torch.float64))
    x, e = zip(*((_weight(c + w * r), _weight(k - w)) for c, k, w, r in zeros), strict=True)
    return row._replace(x=x, e=e, bias=_weight(step.constant))


def _weight(v: Weight) -> Weight:
    return v.item() if isinstance(v, Tensor) and v.ndim == 0 else v
