"""Which times to evaluate at, for a given solver: evolution over subsets of K times (AutoDiffusion, arXiv:2309.10438)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.search.evolve import Evolution, evolve, seeded
from fewstep.search.starts import Progress, Starts, error, fine_grid
from fewstep.search.subsets import Subsets
from fewstep.solvers.base import Solver
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.table import Table


def search_times(
    path: Path,
    starts: Sequence[Starts],
    nfe: int,
    generator: torch.Generator | None = None,
    solver: Solver | None = None,
    times: Tensor | None = None,
    objective: Callable[[Table], float] | None = None,
    sizes: Evolution = Evolution(),  # noqa: B008
    rate: float = 0.1,
    clean: float | None = None,
    progress: Progress | None = None,
) -> Table:
    """The solver's table on the best times found.

    Args:
        nfe: steps, from t_max to the clean end; the solver makes one evaluation in each.
        solver: DDIM unless given.
        times: what to choose from, decreasing, t_max and clean end included. Unless given, all indices of a path of step indices, else
            128 steps even in lambda.
        objective: of a candidate's table, less is better; the error on `starts` unless given.
        sizes, rate: of the evolution and of its mutations.
    """
    solver = solver or DDIM()
    nodes = candidate_times(path, clean) if times is None else times
    score = objective or (lambda table: error(table, path, table.grid, starts))
    species = Subsets(len(nodes) - 2, nfe - 1, rate)

    def table(chosen: tuple[int, ...]) -> Table:
        return Table.of(solver, path, nodes[[0, *(v + 1 for v in chosen), -1]])

    best = evolve(
        lambda chosen: score(table(chosen)),
        species,
        seeded(generator),
        sizes,
        initial=[even(len(nodes) - 2, nfe - 1)],
        progress=progress,
    )[0]
    return table(best.candidate)


def candidate_times(path: Path, clean: float | None = None, steps: int = 128) -> Tensor:
    """The times worth choosing from: indices where the path is one of indices, else even in lambda."""
    if path.t_min == -1.0:
        return torch.arange(path.t_max, -2.0, -1.0, dtype=torch.float64)
    return fine_grid(path, steps, clean)


def even(n: int, k: int) -> tuple[int, ...]:
    """k of n nodes, evenly: where an evolution may begin."""
    return tuple(round((i + 1) * (n + 1) / (k + 1)) - 1 for i in range(k))
