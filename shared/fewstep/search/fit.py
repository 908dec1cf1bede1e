"""Tables fitted to a model: the times and weights of all rows together, by least squares on the end points.

    minimise over (t_1, ..., t_{K-1}, all weights)   sum over starts of |x_K - reference end point|^2
    x_{i+1} = c_i x_i + sum_{j <= i} w_ij E_j,       E_j = x0 or eps at (x_j, t_j)

Every row may weigh all estimates so far, so K evaluations leave K (K + 5)/2 - 1 numbers (17 at 4, 51 at 8): a few dozen starts
determine them. That learned times and weights beat fixed formulas is the finding of Bespoke Solvers (arXiv:2310.19075), DMN
(arXiv:2402.17376), LD3 (arXiv:2405.15506) and S4S (arXiv:2502.17423), which descend by gradients through the network. Here the
Levenberg-Marquardt method is used instead: the problem is small, smooth and badly conditioned, which is what it is for.

The sum of squares has many local minima: the fit begins from several tables, trains each briefly and goes on with the best. What is
returned is the iterate with the least error on other starts, `select`.
"""

from collections.abc import Sequence

import torch

from fewstep.paths import Path
from fewstep.search.grow import grown
from fewstep.search.levenberg_marquardt import Minimiser
from fewstep.search.row_numbers import EndPoints, RowNumbers
from fewstep.search.starts import Progress, Starts, error, levels_grid, span
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.table import Table

# The least relative gain of an iteration that is worth another one.
GAIN = 1e-3


class Fit:
    """One table on its way: the numbers of its rows, and the best iterate so far on the selecting starts."""

    def __init__(self, table: Table, clean: float, select: Sequence[Starts]) -> None:
        self.numbers = RowNumbers(table, clean, anchor=select[0].y is not None)
        self.minimiser = Minimiser(self.numbers.v)
        self.select, self.table, self.error = select, table, error(table, table.path, table.grid, select)

    def run(self, starts: Sequence[Starts], iterations: int) -> None:
        """Iterate until nothing is gained any more."""
        problem, minimiser = EndPoints(self.numbers, starts), self.minimiser
        minimiser.mu = max(minimiser.mu, 1e-6)  # other starts than before may not take steps as bold
        for _ in range(iterations):
            before = problem.square(minimiser.v)
            if not minimiser.iterate(problem):
                break
            table = self.numbers.table(minimiser.v)
            reached = error(table, table.path, table.grid, self.select)
            if reached < self.error:
                self.table, self.error = table, reached
            if minimiser.square > (1 - GAIN) * before:
                break


def fit_table(
    path: Path,
    starts: Sequence[Starts],
    select: Sequence[Starts],
    nfe: int,
    initial: Sequence[Table] = (),
    rounds: Sequence[tuple[int, int]] = ((12, 6), (4, 12), (1, 60)),
    clean: float | None = None,
    progress: Progress | None = None,
) -> Table:
    """The table of `nfe` evaluations fitted to `starts`, whose error on `select` was least.

    Args:
        path: of the model; the table will run on it alone.
        starts: batches to fit; all rounds but the last use the first batch alone. Together they should hold several times more
            coordinates than there are numbers to fit.
        select: batches by which iterates are compared, never fitted.
        initial: further tables to begin from, of nfe evaluations.
        rounds: (tables to go on with, most iterations for each).
        clean: the last time at which the denoiser may be called, see `starts.span`.
    Raises:
        ValueError: no starts, or nfe < 1.
    """
    if nfe < 1 or not starts or not select:
        raise ValueError(f"a fit needs nfe >= 1 and starts to fit and to select on, got nfe = {nfe}")
    lowest = span(path, clean)[1]
    pool = [Fit(table, lowest, select) for table in (*_grow(initial, nfe), *standard_tables(path, nfe, clean))]
    done, total = 0, sum(min(keep, len(pool)) for keep, _ in rounds)
    for n, (keep, iterations) in enumerate(rounds):
        pool = sorted(pool, key=lambda fit: fit.error)[:keep]
        for fit in pool:
            fit.run(starts if n == len(rounds) - 1 else starts[:1], iterations)
            done += 1
            if progress is not None:
                progress(done, total, min(f.error for f in pool))
    return min(pool, key=lambda fit: fit.error).table


def _grow(tables: Sequence[Table], nfe: int) -> list[Table]:
    return [t for t in tables if t.nfe >= nfe] + [
        g for t in tables if t.nfe < nfe for g in _grow(grown(t), nfe)
    ]


def standard_tables(path: Path, nfe: int, clean: float | None = None) -> list[Table]:
    """DDIM and DPM-Solver++(2M) on grids even in lambda that end early, in the middle and late, and on one even in time."""
    hi, lo = span(path, clean)
    ends = [lo - part * (lo - hi) for part in (0.0, 0.15, 0.3, 0.45)]
    grids = [levels_grid(path, torch.linspace(hi, end, nfe, dtype=torch.float64)) for end in ends]
    return [Table.of(solver, path, grid) for grid in grids for solver in (DDIM(), DPMpp2M())]
