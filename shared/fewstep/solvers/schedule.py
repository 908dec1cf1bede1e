"""Unified solver schedules (USF, arXiv:2312.07243): every step of an exponential multistep solver chosen on its own.

One step is the exponential integral of f = x0 or eps from an origin o to s, with f as a Taylor series in lambda (exponential.py):

    z_s = c_x z_o + E_1 f_o + sum_{k=1}^{K} W_k h^k f^(k),     h = lambda_s - lambda_o

    W_k         E_{k+1} of exponential.py; where a single difference is all there is, W_1 may also be UniPC's -w B(h)/2
                (arXiv:2302.04867) with B = u (bh1) or e^u - 1 (bh2): with more nodes B cancels out of its equations
    h^k f^(k)   the k-th derivative at o of the polynomial through f_o and the m_k newest other evaluations
    corrector   of order c: once f_s is known, the same integral with f_s and the c - 1 newest others; its change of z_s is a
                combination of estimates and folds into the weights of the next row, so it costs nothing

DDIM, DPM-Solver++(2M), DPM-Solver-2S, DEIS in log rho and UniPC are members (the class methods below).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Half, Row, Solver, Stage
from fewstep.solvers.exponential import Step

Scale = Literal["exact", "bh1", "bh2"]


@dataclass(frozen=True)
class StepSpec:
    """One step of a schedule.

    s: where it ends; uses: data ("x0") or noise ("eps") form; nodes: m_1, ..., m_K, so K Taylor terms beyond the first (a derivative
    for which there are fewer than k other evaluations drops out); scale: W_1 where one other node is used; corrector: its order, 0
    for none; back: the origin is the state of this many evaluations ago (1 makes the second half of a two-stage singlestep).
    """

    s: float
    uses: Half = "x0"
    nodes: tuple[int, ...] = ()
    scale: Scale = "exact"
    corrector: int = 0
    back: int = 0


@dataclass(frozen=True)
class SolverSchedule(Solver):
    """Steps from `start`, each with its own specification; 1 evaluation per step. It runs on its own `grid` alone.

    order is 0: it is a property of the specifications, not of the class.
    """

    order: ClassVar[int] = 0

    start: float
    steps: tuple[StepSpec, ...]

    @property
    def times(self) -> tuple[float, ...]:
        """The start and the ends of the steps."""
        return (self.start, *(step.s for step in self.steps))

    @property
    def grid(self) -> Tensor:
        """(n + 1,) float64 times."""
        return torch.tensor(self.times, dtype=torch.float64)

    @classmethod
    def ddim(cls, grid: Tensor) -> "SolverSchedule":
        """DDIM on a grid."""
        return cls._each(grid, lambda i, n, s: StepSpec(s))

    @classmethod
    def dpmpp_2m(cls, grid: Tensor) -> "SolverSchedule":
        """DPM-Solver++(2M), whose second-order weight is E_1 / 2."""
        return cls._each(grid, lambda i, n, s: StepSpec(s, nodes=(1,) * (i > 0), scale="bh2"))

    @classmethod
    def multistep(cls, grid: Tensor, order: int, uses: Half = "x0") -> "SolverSchedule":
        """Exact weights of any order: noise form is DEIS in log rho, data form DPM-Solver++ with exact weights."""
        return cls._each(grid, lambda i, n, s: StepSpec(s, uses, _full(min(order - 1, i))))

    @classmethod
    def unipc(cls, grid: Tensor, order: int = 2, scale: Scale = "bh2", uses: Half = "x0") -> "SolverSchedule":
        """UniPC with its corrector, orders rising at the start and falling at the end; the one-node members take B(h)."""

        def spec(i: int, n: int, s: float) -> StepSpec:
            p = i + 1 if i + 1 < order else min(order, n - i)
            return StepSpec(s, uses, _full(p - 1), scale, corrector=p)

        return cls._each(grid, spec)

    @classmethod
    def singlestep_2s(cls, grid: Tensor, scale: Scale = "bh2", uses: Half = "x0") -> "SolverSchedule":
        """DPM-Solver-2S over pairs of steps: the second of each pair starts from the first's origin. n must be even."""
        if len(grid) % 2 == 0:
            raise ValueError(f"pairs of steps need an even number of them, not {len(grid) - 1}")
        return cls._each(grid, lambda i, n, s: StepSpec(s, uses, (1,) * (i % 2), scale, back=i % 2))

    @classmethod
    def _each(cls, grid: Tensor, spec: Callable[[int, int, float], StepSpec]) -> "SolverSchedule":
        start, *ends = grid.tolist()
        return cls(start, tuple(spec(i, len(ends), s) for i, s in enumerate(ends)))

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        """None: the steps differ, see `rows`."""
        raise ValueError("a solver schedule has no single step at other times than its own")

    def rows(self, path: Path, grid: Tensor) -> Iterable[Row]:
        """The rows of the schedule.

        Raises:
            ValueError: another grid than its own.
        """
        if tuple(grid.tolist()) != self.times:
            raise ValueError(f"this schedule has {len(self.steps)} steps at times of its own: sample it on its grid")
        levels = _Levels.of(path, grid)
        moved: dict[int, _Sum] = {}  # what the corrector changed in each state, once its estimate was there
        for i, spec in enumerate(self.steps):
            origin = max(i - spec.back, 0)
            step = levels.predict(spec, origin, i)
            if origin in moved:
                step.add(moved[origin], step.x[origin])
            yield levels.row(step, i)
            if spec.corrector and i + 1 < len(self.steps):
                moved[i + 1] = levels.correction(spec, origin, i)


def _full(m: int) -> tuple[int, ...]:
    """All derivatives of the polynomial through m other nodes."""
    return (m,) * m


@dataclass
class _Sum:
    """A linear combination of states, x0 and eps estimates, by the number of the evaluation they belong to."""

    x: dict[int, float] = field(default_factory=dict)
    x0: dict[int, float] = field(default_factory=dict)
    eps: dict[int, float] = field(default_factory=dict)

    def add(self, other: "_Sum", factor: float) -> None:
        """self += factor other."""
        for mine, theirs in ((self.x, other.x), (self.x0, other.x0), (self.eps, other.eps)):
            for j, w in theirs.items():
                mine[j] = mine.get(j, 0.0) + factor * w


@dataclass(frozen=True)
class _Levels:
    """The path at the times of a schedule, as plain numbers."""

    path: Path
    t: Tensor
    a: list[float]
    s: list[float]
    lam: list[float]

    @classmethod
    def of(cls, path: Path, grid: Tensor) -> "_Levels":
        a, _, s = path.schedule(grid)
        return cls(path, grid, a.tolist(), s.tolist(), path.log_snr(grid).tolist())

    def predict(self, spec: StepSpec, origin: int, i: int) -> _Sum:
        """z_s of step i from the evaluations 0 .. i."""
        # x0 is not a function of eps where a = 0, so noise form has no step out of there.
        uses = "x0" if self.a[origin] == 0.0 else spec.uses
        step = Step(self.path, self.t[origin], self.t[i + 1], uses)
        out = _Sum(x={origin: step.c_x.item()})
        weights = getattr(out, uses)
        weights[origin] = step.first.item()
        others = [j for j in range(i, -1, -1) if j != origin]
        for k, m in enumerate(spec.nodes, 1):
            self._derivative(weights, step, spec.scale, k, origin, i, others[:m])
        return out

    def correction(self, spec: StepSpec, origin: int, i: int) -> _Sum:
        """The corrector's z_s minus the predictor's, with the evaluation i + 1 at s."""
        change = _Sum()
        predicted = self.predict(spec, origin, i)
        change.add(predicted, -1.0)
        uses = "x0" if self.a[origin] == 0.0 else spec.uses
        step = Step(self.path, self.t[origin], self.t[i + 1], uses)
        corrected = _Sum(x={origin: step.c_x.item()})
        weights = getattr(corrected, uses)
        weights[origin] = step.first.item()
        nodes = [i + 1, *(j for j in range(i, -1, -1) if j != origin)][: spec.corrector]
        for k in range(1, spec.corrector + 1):
            self._derivative(weights, step, spec.scale, k, origin, i, nodes)
        change.add(corrected, 1.0)
        return change

    def _derivative(
        self, weights: dict[int, float], step: Step, scale: Scale, k: int, origin: int, i: int, nodes: list[int]
    ) -> None:
        """Add W_k h^k f^(k), f through the origin and these nodes. Infinite levels carry no difference."""
        h = self.lam[i + 1] - self.lam[origin]
        nodes = [j for j in nodes if math.isfinite(self.lam[j])]
        if len(nodes) < k or not math.isfinite(h):
            return
        points = torch.tensor([0.0, *((self.lam[j] - self.lam[origin]) / h for j in nodes)], dtype=torch.float64)
        powers = points ** torch.arange(len(points), dtype=torch.float64)[:, None]
        unit = torch.zeros(len(points), dtype=torch.float64)
        unit[k] = math.factorial(k)
        gain = _gain(step, scale if len(nodes) == 1 else "exact", k)
        for j, c in zip([origin, *nodes], torch.linalg.solve(powers, unit).tolist(), strict=True):
            weights[j] = weights.get(j, 0.0) + gain * c

    def row(self, step: _Sum, i: int) -> Row:
        """As a row; where both halves occur, eps_j = (z_j - a_j x0_j)/s_j turns the noise into states and data."""
        x, x0, eps = dict(step.x), dict(step.x0), dict(step.eps)
        uses: Half = "eps" if not x0 else "x0"
        if uses == "x0":
            for j, w in eps.items():
                x[j] = x.get(j, 0.0) + w / self.s[j]
                x0[j] = x0.get(j, 0.0) - w * self.a[j] / self.s[j]
        e = eps if uses == "eps" else x0
        newest = range(i, -1, -1)
        cx, ce = (tuple(v.get(j, 0.0) for j in newest) for v in (x, e))
        return Row(self.t[i].item(), self.t[i + 1].item(), cx, ce, uses=uses)


def _gain(step: Step, scale: Scale, k: int) -> float:
    """W_k; bh1 and bh2 are for k = 1."""
    if scale == "exact":
        return step.moment(k + 1).item()
    if scale == "bh2":  # -w (e^u - 1) = E_1
        return step.first.item() / 2
    a, _, s = step.path.schedule(step.s)
    # -w u with (w, u) = (a, -h) in data form, (s, h) in noise form.
    return ((a if step.uses == "x0" else -s) * step.h).item() / 2
