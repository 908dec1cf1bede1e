"""A plan cut into the calls that a diffusers pipeline makes: one network evaluation each.

Rows without evaluation belong to the call before them; those ahead of the first call act on the initial noise, whose
law is known.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser import Scalars, tabulate
from fewstep.paths import Path
from fewstep.prediction import Prediction
from fewstep.sampling import fold
from fewstep.solvers.base import Row, Solver, first_order, reach
from fewstep.solvers.wrapper import SolverWrapper


class Call(NamedTuple):
    """row: the one with this evaluation; after: rows without evaluation that follow; at: the plain numbers of its
    time.
    """

    row: Row
    after: tuple[Row, ...]
    at: Scalars


class Calls(NamedTuple):
    """calls: in order; lead: rows ahead of the first; keep: of `advance`; starts: the number of the first call of each
    step.
    """

    calls: tuple[Call, ...]
    lead: tuple[Row, ...]
    keep: tuple[int, int]
    starts: tuple[int, ...]

    @property
    def labels(self) -> list[float]:
        """What the network is told at each call."""
        return [call.at.label for call in self.calls]

    @property
    def per_step(self) -> int:
        """Calls of a step: the usual number, the larger one where two are equally common."""
        counts = [b - a for a, b in zip(self.starts, [*self.starts[1:], len(self.calls)], strict=True)]
        return max(counts, key=lambda c: (counts.count(c), c))

    def start_scale(self, scale: float) -> float:
        """Standard deviation of the state at the first call, from that of the initial noise."""
        for row in self.lead:
            scale = math.hypot(_number(row.x[0]) * scale, _number(row.noise))
        return scale


def _number(w: float | Tensor) -> float:
    if not isinstance(w, Tensor):
        return w
    raise ValueError("weights per coordinate cannot act on initial noise that the pipeline draws")


def cut(rows: tuple[Row, ...], path: Path, prediction: Prediction, folded: bool) -> Calls:
    """The calls of a plan; `folded` weights multiply raw outputs, others estimates."""
    table = tabulate(path, prediction, tuple(r.t for r in rows))
    starts, calls, fresh = [], 0, True
    for row in rows:
        if row.e and fresh:
            starts.append(calls)
            fresh = False
        calls += bool(row.e)
        fresh = fresh or row.last
    rows = fold(rows, path, prediction) if folded else rows
    first = next(k for k, row in enumerate(rows) if row.e)
    grouped: list[list[Row]] = []
    for row in rows[first:]:
        if row.e:
            grouped.append([row])
        else:
            grouped[-1].append(row)
    cells = (Call(group[0], tuple(group[1:]), table[group[0].t]) for group in grouped)
    return Calls(tuple(cells), rows[:first], reach(rows), tuple(starts))


@dataclass(frozen=True)
class Begun(SolverWrapper):
    """`solver` on a whole grid of which the first steps are not taken: later ones do not look back at them."""

    first: int = 0

    def lookback(self, n: int) -> Sequence[int]:
        return [min(k, max(i - self.first, 0)) for i, k in enumerate(self.solver.lookback(n))]

    def regular(self, path: Path, t: Tensor, s: Tensor, stages: int) -> Tensor:
        return self.solver.regular(path, t, s, stages)


@dataclass(frozen=True)
class Inside(SolverWrapper):
    """`solver`, begun inside a step: what is left of that step is one first-order step of one evaluation."""

    def rows(self, path: Path, grid: Tensor) -> Iterator[Row]:
        yield first_order(path, grid[0], grid[1])
        if len(grid) > 2:
            yield from self.solver.rows(path, grid[1:])


def begin(rows: tuple[Row, ...], number: int, solver: Solver, path: Path, times: Tensor) -> tuple[Row, ...]:
    """The rows of a trajectory that begins at call `number` of the plan `rows`.

    A solver that looks back starts afresh there; one that does not goes on with its rows. A call inside a step finishes
    that step to first order.
    """
    evaluated = [k for k, row in enumerate(rows) if row.e]
    ends = [k for k, row in enumerate(rows) if row.last]
    step = sum(k < evaluated[number] for k in ends)  # steps finished before
    inside = any(ends[step - 1] < k < evaluated[number] for k in evaluated) if step else number > 0
    if inside:
        now = rows[evaluated[number]].t
        return Inside(solver).plan(path, torch.cat([times.new_tensor([now]), times[step + 1 :]]))
    rest = rows[ends[step - 1] + 1 :] if step else rows
    if not looks_back(rest):
        return rest
    if type(solver).rows is Solver.rows:  # otherwise how far rows look back is not ours to say
        return Begun(solver, step).plan(path, times)[ends[step - 1] + 1 :]
    return solver.plan(path, times[step:])


def looks_back(rows: tuple[Row, ...]) -> bool:
    """Whether the rows use states or estimates from before the first of them."""
    states, estimates = 1, 0
    for row in rows:
        estimates += bool(row.e)
        if len(row.x) > states or len(row.e) > estimates:
            return True
        states += 1
    return False
