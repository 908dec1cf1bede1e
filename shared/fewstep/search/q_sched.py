"""Q-Sched: two coefficients that make up for a quantised network (enyac-group/q-sched: m, k on a grid of 10 x 10 in [0.8, 1.1]).

before every step   x := c_x x,   net := c_e net,      c_e = linspace(m, 1, n),  c_x = linspace(k, 1, n)

Both are weights of a table: with E = A x + B net + C y (prediction.py), the estimate made of c net is c E + (1 - c)(A x + C y).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from fewstep.denoiser import tabulate
from fewstep.prediction import Prediction
from fewstep.search.starts import Starts, error
from fewstep.solvers.table import Table, TableRow

AXIS = tuple(torch.linspace(0.8, 1.1, 10, dtype=torch.float64).tolist())


def scaled_outputs(table: Table, prediction: Prediction, scales: Sequence[float]) -> Table:
    """The table as it is with scales[i] times the network's output in its i-th evaluation.

    Raises:
        ValueError: another number of scales than evaluations.
    """
    if len(scales) != table.nfe:
        raise ValueError(f"a table of {table.nfe} evaluations needs as many scales, not {len(scales)}")
    numbers = tabulate(table.path, prediction, tuple(r.t for r in table.lines))
    b = table.path.schedule(torch.tensor([r.t for r in table.lines], dtype=torch.float64))[1].tolist()
    evaluated: list[tuple[int, float]] = []  # (row, scale) of E_0, E_1, ...
    lines = []
    for n, r in enumerate(table.lines):
        evaluated = [(n, scales[len(evaluated)]), *evaluated] if r.e else evaluated
        x, e, y = list(r.x), [], r.y
        for (at, c), w in zip(evaluated, r.e, strict=False):
            e.append(w * c)
            if w != 0.0 and c != 1.0:
                on_x, _, on_y = getattr(numbers[table.lines[at].t], r.uses)
                x += [0.0] * (n - at + 1 - len(x))
                x[n - at] += w * (1 - c) * on_x
                y += w * (1 - c) * (on_x * b[at] + on_y)  # rows are over z = x - b y
        lines.append(replace(r, x=tuple(x), e=tuple(e), y=y))
    return Table(table.path, tuple(lines))


def scaled_states(table: Table, scales: Sequence[float]) -> Table:
    """The table with the state multiplied by scales[i] before its i-th row; the result of the last one is left as it is.

    Raises:
        ValueError: another number of scales than rows.
    """
    if len(scales) != len(table.lines):
        raise ValueError(f"a table of {len(table.lines)} rows needs as many scales, not {len(scales)}")
    first = table.lines[0]
    lines = [TableRow(first.t, first.t, (scales[0],), (), first.uses, last=False)]
    for r, c in zip(table.lines, [*scales[1:], 1.0], strict=True):
        x, e = (tuple(w * c for w in v) for v in (r.x, r.e))
        lines.append(replace(r, x=x, e=e, noise=r.noise * c, y=r.y * c))
    return Table(table.path, tuple(lines))


def search_q_sched(
    table: Table,
    prediction: Prediction,
    starts: Sequence[Starts] = (),
    objective: Callable[[Table], float] | None = None,
    axis: Sequence[float] = AXIS,
) -> Table:
    """The table with scaled outputs and states of least objective over all pairs (m, k) of the axis.

    Args:
        table: how the network is sampled, one evaluation in every row.
        prediction: of the network whose outputs are scaled.
        starts: with end points to reach, e.g. those of the network before it was quantised (`reference`).
        objective: of a candidate, less is better (the paper: of images and prompts); the error on `starts` unless given.
    """

    def candidate(m: float, k: float) -> Table:
        c_e, c_x = (torch.linspace(v, 1.0, table.nfe, dtype=torch.float64).tolist() for v in (m, k))
        return scaled_states(scaled_outputs(table, prediction, c_e), c_x)

    score = objective or (lambda own: error(own, own.path, own.grid, starts))
    return candidate(*grid_search(lambda m, k: score(candidate(m, k)), axis, axis))


def grid_search(objective: Callable[..., float], *axes: Sequence[float]) -> tuple[float, ...]:
    """The point of least objective among all combinations of the axes."""
    return min(itertools.product(*axes), key=lambda point: objective(*point))
