"""The rows of a table as one vector of numbers, and what the end points of starts are as functions of it.

v = (lambda_1, ..., lambda_{K-1}, and of every row its weights of states, of estimates and, on anchored paths, of the anchor)

Derivatives are differences, each taken from the row that its number enters: no gradient of the denoiser is needed, and with K rows
two thirds of the evaluations are saved.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.paths import Path
from fewstep.sampling import anchored
from fewstep.search.levenberg_marquardt import Normal
from fewstep.search.starts import Starts
from fewstep.solvers.base import Row, State, advance, reach
from fewstep.solvers.table import Table, line

# Starts count as squares up to about this many times the median distance.
OUTLIER = 5.0
# Neighbouring times stay this far apart in lambda.
CLOSEST = 1e-3
# The magnitudes of a row's weights add up to no more. Larger ones cancel, which is exact on the starts that are fitted, wild on a few others,
# and multiplies the rounding of a network.
LARGEST = 50.0
# What the estimates are taken to be uncertain by, as a share of the median distance of the end points: it makes large weights cost.
NOISE = 0.003


class Slot(NamedTuple):
    """Which number of which row: its time, a weight x[k] or e[k], or the anchor's weight."""

    kind: Literal["t", "x", "e", "y"]
    row: int
    k: int = 0


class RowNumbers:
    """A table's rows as a vector; every evaluation so far gets a weight in every row.

    Args:
        table: deterministic, from t_max to the clean end.
        clean: lambda at the last time the denoiser may be called.
        anchor: whether the weights of the anchor are numbers too.
    """

    def __init__(self, table: Table, clean: float, anchor: bool) -> None:
        self.path, self.clean = table.path, clean
        self.rows = _filled(table.plan(table.path, table.grid))
        self.slots = [slot for i, row in enumerate(self.rows) for slot in _slots(i, row, anchor)]
        self.timed = [n for n, slot in enumerate(self.slots) if slot.kind == "t"]
        self.rows_of_weights = torch.tensor([len(self.rows) if slot.kind == "t" else slot.row for slot in self.slots])
        t = torch.tensor([row.t for row in self.rows], dtype=torch.float64)
        self.first = self.path.log_snr(t)[0].item()
        lam = self.path.log_snr(t).tolist()
        self.v = torch.tensor([self._read(slot, lam) for slot in self.slots], dtype=torch.float64)

    def _read(self, slot: Slot, lam: list[float]) -> float:
        row = self.rows[slot.row]
        return float(
            {"t": lam, "x": row.x, "e": row.e, "y": (row.y,)}[slot.kind][slot.row if slot.kind == "t" else slot.k]
        )

    def allowed(self, v: Tensor) -> bool:
        """Whether the times of v decrease, inside the range of the denoiser, and its rows are `steady`."""
        lam = torch.cat([torch.tensor([self.first], dtype=torch.float64), v[self.timed]])
        return bool(v.isfinite().all() and (lam.diff() >= CLOSEST).all() and lam[-1] <= self.clean and self.steady(v))

    def steady(self, v: Tensor) -> bool:
        """Whether no row weighs more than LARGEST in all."""
        sums = v.new_zeros(len(self.rows) + 1).index_add_(0, self.rows_of_weights, v.abs())[:-1]
        return bool(sums.max() <= LARGEST)

    def table(self, v: Tensor) -> Table:
        """The table of a vector."""
        return Table(self.path, tuple(line(row) for row in self.build(v)))

    def build(self, v: Tensor) -> list[Row]:
        """The rows of a vector."""
        return self._rows(v, self.path.time_of_log_snr(v[self.timed]).tolist())

    def _rows(self, v: Tensor, times: list[float]) -> list[Row]:
        t = [self.rows[0].t, *times, self.rows[-1].s]
        parts = [{"x": list(r.x), "e": list(r.e), "y": [r.y]} for r in self.rows]
        for slot, value in zip(self.slots, v.tolist(), strict=True):
            if slot.kind != "t":
                parts[slot.row][slot.kind][slot.k] = value
        return [
            row._replace(t=t[i], s=t[i + 1], x=tuple(p["x"]), e=tuple(p["e"]), y=p["y"][0])
            for i, (row, p) in enumerate(zip(self.rows, parts, strict=True))
        ]

    def nearby(self, v: Tensor, dtype: torch.dtype) -> list[tuple[int, float, list[Row]]]:
        """For every number, the first row that it enters, a small change of it, and the rows with this change."""
        h = torch.finfo(dtype).eps ** 0.5 * v.abs().clamp(min=1.0)
        lam = v[self.timed].repeat(len(self.timed) + 1, 1)
        lam[1:].diagonal().add_(h[self.timed])
        times = self.path.time_of_log_snr(lam).tolist()
        found = []
        for n, slot in enumerate(self.slots):
            changed = v.clone()
            changed[n] += h[n]
            moved = times[1 + self.timed.index(n)] if slot.kind == "t" else times[0]
            # A time is also where the row before ends, which matters to the anchor.
            found.append((slot.row - (slot.kind == "t"), h[n].item(), self._rows(changed, moved)))
        return found


class EndPoints:
    """How far the end points of RowNumbers are from the reference, over starts: a Problem of the Levenberg-Marquardt method.

        sum over starts of c^2 log(1 + e^2 / c^2),     e^2 = |end point - reference|^2,     c = outlier median(e)

    Near the border between two modes a start may end in the other one: its error is a thousand times the others' and no small change of
    the numbers mends it. Cauchy's rho counts such a start little, every other as its square (reweighted least squares, weights
    1/(1 + e^2 / c^2)). To it comes NOISE^2 median(e)^2 sum of squared weights for each start: what independent errors of NOISE median(e)
    in every state and estimate (not in the anchor, which is known) would add. c is set by `normal`, at the numbers where it is called.
    """

    def __init__(self, numbers: RowNumbers, starts: Sequence[Starts], outlier: float = OUTLIER) -> None:
        self.numbers, self.starts, self.outlier, self.scale = numbers, starts, outlier, math.inf
        self.weights = torch.tensor([slot.kind in ("x", "e") for slot in numbers.slots], dtype=torch.float64)

    @torch.no_grad()
    def square(self, v: Tensor) -> float:
        """The sum at v; inf where v is not allowed."""
        if not self.numbers.allowed(v):
            return math.inf
        rows = self.numbers.build(v)
        return self._sum(v, torch.cat([_squares(_gap(self._run(part, rows)[-1][0], part)) for part in self.starts]))

    def _sum(self, v: Tensor, squares: Tensor) -> float:
        if self.scale == math.inf:
            total = squares.sum()
        else:
            total = (self.scale * (squares / self.scale).log1p()).sum() + self._ridge(len(squares)) @ v.square()
        return total.item() if total.isfinite() else math.inf

    def _ridge(self, starts: int) -> Tensor:
        """What the square of every number costs."""
        return starts * (NOISE / self.outlier) ** 2 * self.scale * self.weights

    @torch.no_grad()
    def normal(self, v: Tensor) -> Normal:
        """The reweighted normal equations, one batch of starts at a time."""
        rows, size = self.numbers.build(v), len(v)
        runs = [self._run(part, rows) for part in self.starts]
        gaps = [_gap(run[-1][0], part) for run, part in zip(runs, self.starts, strict=True)]
        squares = torch.cat([_squares(gap) for gap in gaps])
        self.scale = self.outlier**2 * squares.median().item() or math.inf
        ridge = self._ridge(len(squares)) if self.scale < math.inf else torch.zeros(size, dtype=torch.float64)
        a, g = torch.diag(ridge), ridge * v
        for part, run, gap in zip(self.starts, runs, gaps, strict=True):
            columns = self._columns(v, part, run)
            weight = 1 / (1 + _squares(gap) / self.scale)
            weighted = (columns * weight[:, None]).flatten(1)
            a, g = a + weighted @ columns.flatten(1).T, g + weighted @ gap.flatten()
        return Normal(a, g, self._sum(v, squares))

    def _columns(self, v: Tensor, part: Starts, run: list[tuple[State, Estimate | None]]) -> Tensor:
        """d(end point)/dv of a batch that was run at v: (P, B, coordinates)."""
        base = run[-1][0].xs[0]
        columns = torch.empty(len(v), len(base), base[0].numel(), dtype=torch.float64)
        for column, (first, h, rows) in zip(columns, self.numbers.nearby(v, base.dtype), strict=True):
            end = self._run(part, rows, first, run[first])[-1][0].xs[0]
            column.copy_((end - base).flatten(1) / h)
        return columns

    def _run(
        self, part: Starts, rows: list[Row], first: int = 0, before: tuple[State, Estimate | None] | None = None
    ) -> list[tuple[State, Estimate | None]]:
        """(state, estimate) of the rows from `first` on, and the last state; `before` holds those of row `first`, if they are known."""
        rows = list(rows if part.y is None else _anchored(tuple(rows), self.numbers.path))
        keep, passed = reach(rows), []
        state, estimate = before or (State((part.x,)), None)
        for n, row in enumerate(rows[first:]):
            if row.e and not (n == 0 and estimate is not None):
                estimate = part.denoise(state.xs[0], row.t)
            used = estimate if row.e else None
            passed.append((state, used))
            state = advance(state, used, row, None, keep, part.y)
        return [*passed, (state, None)]


def _gap(state: State, part: Starts) -> Tensor:
    """End point - reference, (B, coordinates) in float64 on the CPU."""
    return (state.xs[0].double() - part.target.double()).flatten(1).cpu()


def _squares(gap: Tensor) -> Tensor:
    return gap.square().sum(1)


def _anchored(rows: tuple[Row, ...], path: Path) -> tuple[Row, ...]:
    # Without its cache: no rows come twice here.
    return anchored.__wrapped__(rows, path)


def _filled(rows: Sequence[Row]) -> list[Row]:
    """The rows with a weight for every estimate made so far.

    Raises:
        ValueError: noise, or steps of several rows: their times are not free.
    """
    if any(row.noise != 0.0 or not row.last for row in rows):
        raise ValueError("a fit starts from a deterministic table of one row per step")
    made, filled = 0, []
    for row in rows:
        made += bool(row.e)
        filled.append(row._replace(e=row.e + (0.0,) * (made - len(row.e) if row.e else 0)))
    return filled


def _slots(i: int, row: Row, anchor: bool) -> list[Slot]:
    weights = [Slot("x", i, k) for k in range(len(row.x))] + [Slot("e", i, k) for k in range(len(row.e))]
    return [Slot("t", i)] * (i > 0) + weights + [Slot("y", i)] * anchor
