"""Tables fitted to a model: the times and weights of all rows together, by least squares on the end points.

    minimise over (t_1, ..., t_{K-1}, all weights)   sum over starts of |x_K - reference end point|^2
    x_{i+1} = c_i x_i + sum_{j <= i} w_ij E_j,       E_j = x0 at (x_j, t_j),       |c_i| + sum_j |w_ij| (+ that of the anchor) <= LARGEST (row_numbers.py)

Every row may weigh all estimates so far, so K evaluations leave K (K + 5)/2 - 1 numbers (17 at 4, 51 at 8): a few dozen starts
determine them. That learned times and weights beat fixed formulas is the finding of Bespoke Solvers (arXiv:2310.19075), DMN
(arXiv:2402.17376), LD3 (arXiv:2405.15506) and S4S (arXiv:2502.17423), which descend by gradients through the network. Here

1. an evolution (evolve.py) looks for good times, with the rows of every candidate by regression on the teacher's states (regress.py);
   it begins with the usual grids, and the best of those go on whatever comes of the others;
2. the best few of them, and of the fixed solvers on the usual grids (which win where the flow is not smooth: strong guidance), are fitted
   by the Levenberg-Marquardt method: the problem is small, smooth and badly conditioned, which is what it is for;
3. the best of those go on until little is gained.

A table of fewer evaluations also takes part once it has grown to nfe rows (`grown`): it begins with its own error. That matters where the flow is nearly discontinuous (strong guidance in many dimensions) and most beginnings lead to
poor minima.

What is returned is the iterate with the least error on other starts, `select`. No gradient of the denoiser is needed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.grids.beta import beta_quantile
from fewstep.paths import Path
from fewstep.search.evolve import Evolution, evolve, seeded
from fewstep.search.levenberg_marquardt import Minimiser
from fewstep.search.regress import regressed
from fewstep.search.row_numbers import OUTLIER, EndPoints, RowNumbers
from fewstep.search.starts import LEVELS, Progress, Starts, early_grid, error, levels_grid, span
from fewstep.search.subsets import Subsets
from fewstep.search.trajectories import record
from fewstep.solvers import DDIM, DPMpp2M, UniPC
from fewstep.solvers.base import data_form
from fewstep.solvers.schedule import SolverSchedule
from fewstep.solvers.table import Table, TableRow

# See `usual_grids`.
EARLY = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
# See `refined`.
OUTLIERS = (OUTLIER, 10 * OUTLIER, 100 * OUTLIER)
# The least relative gain of an iteration that is worth another one.
GAIN = 1e-3


@dataclass(frozen=True)
class Effort:
    """How much a fit spends.

    sizes: of the evolution over times; nodes: how many times there are to choose from;
    fixed: how many tables of fixed solvers, and of regressions on the usual grids, go on whatever the evolution finds;
    rounds: (tables to go on with, most Levenberg-Marquardt iterations for each), the first beside those that take part anyway.
    An iteration of K rows costs about K^3/6 + K^2/2 evaluations of all starts fitted, a candidate of the evolution K.
    """

    sizes: Evolution = Evolution(  # noqa: RUF009
        population=40, keep=10, mutants=20, crosses=5, generations=8
    )
    nodes: int = 64
    fixed: int = 2
    rounds: tuple[tuple[int, int], ...] = ((6, 4), (2, 40))


class Fit:
    """One table on its way: the numbers of its rows, and the best iterate so far on the selecting starts."""

    def __init__(self, table: Table, clean: float, select: Sequence[Starts]) -> None:
        self.numbers = RowNumbers(table, clean, anchor=select[0].y is not None)
        self.minimiser = Minimiser(self.numbers.v)
        self.select, self.table = select, table
        self.error = self._measured(table) if self.numbers.steady(self.numbers.v) else math.inf

    def run(
        self, starts: Sequence[Starts], iterations: int, select: Sequence[Starts], outlier: float = OUTLIER
    ) -> None:
        """Iterate until little is gained any more."""
        if select is not self.select:
            self.select = select
            self.error = self._measured(self.table) if self.error < math.inf else math.inf
        problem, minimiser = EndPoints(self.numbers, starts, outlier), self.minimiser
        minimiser.mu = max(minimiser.mu, 1e-6)  # other starts than before may not take steps as bold
        for _ in range(iterations):
            if not minimiser.iterate(problem):
                break
            table = self.numbers.table(minimiser.v)
            reached = self._measured(table)
            if reached < self.error:
                self.table, self.error = table, reached
            if minimiser.gain < GAIN:
                break

    def _measured(self, table: Table) -> float:
        """The error on the selecting starts."""
        return error(table, table.path, table.grid, self.select)


def fit_table(
    path: Path,
    starts: Sequence[Starts],
    select: Sequence[Starts],
    nfe: int,
    generator: torch.Generator | None = None,
    initial: Sequence[Table] = (),
    effort: Effort = Effort(),
    clean: float | None = None,
    progress: Progress | None = None,
) -> Table:
    """The table of `nfe` evaluations fitted to `starts`, whose error on `select` was least.

    Args:
        path: of the model; the table will run on it alone.
        starts: batches to fit. Together they should hold several times more coordinates than there are numbers to fit.
        select: batches by which iterates are compared, never fitted; all rounds but the last use the first alone. So does the evolution
            of `starts`, while every round is fitted to all of them.
        generator: of the evolution's random choices.
        initial: further tables to begin from, of nfe evaluations and one row per step; where there are none, from nfe = 4 on, one of half
            the evaluations is fitted first and grown.
        clean: the last time at which the denoiser may be called, see `starts.span`.
        progress: called with the error on `select`.
    Raises:
        ValueError: no starts, or nfe < 1.
    """
    if nfe < 1 or not starts or not select:
        raise ValueError(f"a fit needs nfe >= 1 and starts to fit and to select on, got nfe = {nfe}")
    rounds = [(min(keep, nfe), n) for keep, n in effort.rounds] if nfe == 1 else effort.rounds
    known = [*initial, *dict.fromkeys(fixed_tables(path, starts[:1], nfe, clean))][: len(initial) + effort.fixed]
    if nfe >= 4 and not initial:
        half = fit_table(path, starts, select, nfe // 2, generator, effort=effort, clean=clean)
        known.append(grown(half, nfe, clean))
    evolved = regressed_tables(path, starts[:1], nfe, generator, effort, clean)[: effort.fixed + rounds[0][0]]
    lowest, first = span(path, clean)[1], select[:1]
    pool = [Fit(table, lowest, first) for table in [*known, *evolved]]
    done, total = 0, len(pool) + sum(min(keep, len(pool)) for keep, _ in rounds[1:])
    for n, (keep, iterations) in enumerate(rounds):
        pool = sorted(pool, key=lambda fit: fit.error)[: keep if n else None]
        for fit in pool:
            fit.run(starts, iterations, select if n == len(rounds) - 1 else first)
            done += 1
            if progress is not None:
                progress(done, total, min(f.error for f in pool))
    return min(pool, key=lambda fit: fit.error).table


def refined(
    table: Table,
    starts: Sequence[Starts],
    select: Sequence[Starts],
    iterations: int,
    clean: float | None = None,
    outliers: Sequence[float] = OUTLIERS,
) -> Table:
    """The table fitted further, to more starts than it was found with; the best iterate on `select`, or itself.

    Where few starts decide about the mean (those near a border between modes), only many of them tell which weights serve them all, and a
    search that goes through many tables cannot afford so many. With many starts those few may also weigh more: outliers, one fit each, are
    how many medians off a start still counts as its square. The other arguments are those of `fit_table`.
    """
    fits = []
    for outlier in outliers:
        fits.append(Fit(table, span(table.path, clean)[1], select))
        fits[-1].run(starts, iterations, select, outlier)
    return min(fits, key=lambda fit: fit.error).table


def grown(table: Table, nfe: int, clean: float | None = None) -> Table:
    """The same samples with `nfe` evaluations: the longest steps are cut, and what is evaluated there weighs 0.

    t_i -> t_{i+1} becomes a DDIM step t_i -> t_m and a row t_m -> t_{i+1} with the weights of before and 0 for x_m and E_m. Lengths are
    angles atan(a/s): in lambda the last step is the longest however often it is cut, and estimates at nearly one time get large
    weights that cancel on all starts but a few.
    """
    path, lines = table.path, list(table.lines)
    while len(lines) < nfe:
        starts = torch.tensor([line.t for line in lines], dtype=torch.float64)
        lam = torch.cat([path.log_snr(starts).clamp(min=LEVELS[0]), torch.tensor([span(path, clean)[1]])])
        angle = lam.exp().atan()
        i = int(angle.diff().argmax())
        middle = path.time_of_log_snr(((angle[i : i + 1] + angle[i + 1]) / 2).tan().log())
        c, gain = (v.item() for v in data_form(path, starts[i : i + 1], middle))
        cut = TableRow(lines[i].t, middle.item(), (c,), (gain,))
        rest = replace(lines[i], t=cut.s, x=(0.0, *lines[i].x), e=(0.0, *lines[i].e))
        later = [
            replace(line, x=_with_zero(line.x, k), e=_with_zero(line.e, k)) for k, line in enumerate(lines[i + 1 :], 1)
        ]
        lines[i:] = [cut, rest, *later]
    return Table(path, tuple(lines))


def _with_zero(w: tuple[float, ...], k: int) -> tuple[float, ...]:
    """A weight 0 before the k-th newest, where there are so many."""
    return w[:k] + (0.0,) + w[k:] if len(w) > k else w


def fixed_tables(path: Path, starts: Sequence[Starts], nfe: int, clean: float | None = None) -> list[Table]:
    """DDIM, DPM-Solver++(2M) and UniPC on the usual grids, best first."""
    found = []
    for grid in usual_grids(path, nfe, clean):
        for solver in (DDIM(), DPMpp2M(), UniPC(2), UniPC(3)):
            table = Table.of(solver, path, grid)
            found.append((error(table, path, grid, starts), table))
    return [table for _, table in sorted(found, key=lambda item: item[0])]


def usual_grids(path: Path, nfe: int, clean: float | None = None) -> list[Tensor]:
    """(nfe + 1,) times even in lambda, in time, in Beta(0.6, 0.6) quantiles of time and in sigma^(1/7).

    The last evaluation is at the end of the denoiser's range, or one step before it; of further grids even in lambda it is after EARLY
    shares of the range. A start chooses its mode at the noisy end: times that crowd there keep those near a border from ending in the
    wrong one.
    """
    hi, lo = span(path, clean)
    t_max, t_min = path.time_of_log_snr(torch.tensor([hi, lo], dtype=torch.float64)).tolist()
    whole = torch.linspace(0, 1, nfe, dtype=torch.float64)
    found = [levels_grid(path, hi + share * whole * (lo - hi)) for share in EARLY]
    for u in (whole, torch.arange(nfe, dtype=torch.float64) / nfe):
        root = math.exp(-hi / 7) + u * (math.exp(-lo / 7) - math.exp(-hi / 7))
        levels = [
            hi + u * (lo - hi),
            path.log_snr(t_max + u * (t_min - t_max)),
            path.log_snr(t_max + (1 - beta_quantile(1 - u, 0.6, 0.6)) * (t_min - t_max)),
            -7 * root.log(),
        ]
        found += [levels_grid(path, lam.clamp(hi, lo)) for lam in levels]
    return found


def regressed_tables(
    path: Path,
    starts: Sequence[Starts],
    nfe: int,
    generator: torch.Generator | None = None,
    effort: Effort = Effort(),
    clean: float | None = None,
) -> list[Table]:
    """Tables by regression on evolved times, best first; before them the best `effort.fixed` of those on the usual grids.

    The evolution begins with the usual grids.
    """
    grid = early_grid(path, max(effort.nodes, nfe), clean)
    teacher = [record(part, path, SolverSchedule.unipc(grid, 3, "exact"), grid) for part in starts]
    n, tables = len(grid) - 1, {}

    def objective(chosen: tuple[int, ...]) -> float:
        tables[chosen], left = regressed(path, teacher, (0, *(v + 1 for v in chosen), n))
        return left

    species = Subsets(n - 1, nfe - 1, rate=0.4, reach=6)
    usual = list(dict.fromkeys(nearest(grid, own) for own in usual_grids(path, nfe, clean)))
    ranked = [v.candidate for v in evolve(objective, species, seeded(generator), effort.sizes, initial=usual)]
    first = [c for c in ranked if c in usual][: effort.fixed]
    return [tables[c] for c in dict.fromkeys([*first, *ranked])]


def nearest(grid: Tensor, own: Tensor) -> tuple[int, ...]:
    """The interior nodes of a grid nearest to the interior times of another, all of them different: rising, counted from 0."""
    nodes = (grid[1:-1] - own[1:-1, None]).abs().argmin(1).tolist()
    last, k = len(grid) - 3, len(nodes)
    for i in range(k):
        nodes[i] = max(nodes[i], nodes[i - 1] + 1) if i else nodes[i]
    for i in reversed(range(k)):
        nodes[i] = min(nodes[i], last - (k - 1 - i))
    return tuple(nodes)
