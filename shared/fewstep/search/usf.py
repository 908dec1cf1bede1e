"""Search over solver schedules (USF and its search S^3, arXiv:2312.07243): times, form, Taylor terms, nodes, B(h) and corrector of each step.

Evolution with a predictor: of the children of every generation, a ranking network trained on all schedules scored so far passes the
most promising ones on to be scored. (The paper scores by FID of 1000 images; here the score is any objective, by default the
distance to the reference end points.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.search.evolve import Evolution, Scored, evolve, seeded
from fewstep.search.ranking import Ranker
from fewstep.search.starts import Progress, Starts, error, fine_grid
from fewstep.search.subsets import Nodes, Subsets
from fewstep.search.times import even
from fewstep.solvers.schedule import SolverSchedule, StepSpec
from fewstep.solvers.table import Table

SCALES = ("exact", "bh1", "bh2")


@dataclass(frozen=True)
class Genome:
    """Interior times as nodes of a grid, and the steps with their times left open."""

    nodes: Nodes
    steps: tuple[StepSpec, ...]

    def schedule(self, grid: Tensor) -> SolverSchedule:
        """On the grid that the nodes are of: (n + 2,) times, first and last always used."""
        ends = grid[[*(v + 1 for v in self.nodes), -1]].tolist()
        return SolverSchedule(
            grid[0].item(), tuple(replace(spec, s=s) for spec, s in zip(self.steps, ends, strict=True))
        )

    def features(self, n: int) -> list[float]:
        """Numbers for the predictor: where the times are, and the choices of every step."""
        steps = [
            [
                step.uses == "eps",
                *(step.nodes + (0, 0, 0))[:3],
                *(step.scale == v for v in SCALES),
                step.corrector,
                step.back,
            ]
            for step in self.steps
        ]
        return [v / n for v in self.nodes] + [float(v) for step in steps for v in step]


@dataclass(frozen=True)
class Genomes:
    """How genomes are made: a Species.

    subsets: of the interior times; terms: most Taylor terms beyond the first; rate: chance that a step is changed by a mutation.
    """

    subsets: Subsets
    terms: int = 2
    rate: float = 0.2

    def fresh(self, random: Random) -> Genome:
        return Genome(self.subsets.fresh(random), tuple(self._spec(random) for _ in range(self.subsets.k + 1)))

    def mutate(self, genome: Genome, random: Random) -> Genome:
        """Times, or some steps, or both."""
        nodes = self.subsets.mutate(genome.nodes, random) if random.random() < 0.7 and self.subsets.k else genome.nodes
        steps = tuple(self._change(s, random) if random.random() < self.rate else s for s in genome.steps)
        return Genome(nodes, steps)

    def cross(self, a: Genome, b: Genome, random: Random) -> Genome:
        """Times of either place, steps of either parent."""
        steps = tuple(random.choice(pair) for pair in zip(a.steps, b.steps, strict=True))
        return Genome(self.subsets.cross(a.nodes, b.nodes, random), steps)

    def _spec(self, random: Random) -> StepSpec:
        terms = random.randint(0, self.terms)
        nodes = tuple(random.randint(k, self.terms) for k in range(1, terms + 1))
        uses, scale = random.choice(("x0", "eps")), random.choice(SCALES)
        return StepSpec(0.0, uses, nodes, scale, random.randint(0, self.terms + 1), back=int(random.random() < 0.1))

    def _change(self, step: StepSpec, random: Random) -> StepSpec:
        """One choice of a step drawn again."""
        name = random.choice(("uses", "nodes", "scale", "corrector", "back"))
        return replace(step, **{name: getattr(self._spec(random), name)})


def search_usf(
    path: Path,
    starts: Sequence[Starts],
    nfe: int,
    generator: torch.Generator | None = None,
    objective: Callable[[Table], float] | None = None,
    sizes: Evolution = Evolution(mutants=60, crosses=40, generations=12),  # noqa: B008
    scored: int = 25,
    clean: float | None = None,
    progress: Progress | None = None,
) -> Table:
    """The table of the best schedule found.

    Args:
        nfe: steps; the first generation holds DDIM, DPM-Solver++(2M), DEIS in lambda and UniPC on an even grid.
        objective: of a candidate's table, less is better; the error on `starts` unless given.
        sizes: of the evolution; scored: children of each generation that the predictor passes on.
    """
    grid = fine_grid(path, 64, clean)
    score = objective or (lambda table: error(table, path, table.grid, starts))
    draws = torch.Generator().manual_seed(seeded(generator).getrandbits(60))

    def screen(children: Sequence[Genome], ranked: Sequence[Scored[Genome]]) -> Sequence[Genome]:
        ranker = Ranker()
        ranker.fit(_features([v.candidate for v in ranked], len(grid)), [v.score for v in ranked], draws)
        order = ranker(_features(children, len(grid))).argsort().tolist()
        return [children[i] for i in order[:scored]]

    best = evolve(
        lambda genome: score(Table.of(genome.schedule(grid), path, genome.schedule(grid).grid)),
        Genomes(Subsets(len(grid) - 2, nfe - 1, reach=6)),
        seeded(generator),
        sizes,
        initial=presets(grid, nfe),
        screen=screen,
        progress=progress,
    )[0]
    schedule = best.candidate.schedule(grid)
    return Table.of(schedule, path, schedule.grid)


def presets(grid: Tensor, nfe: int) -> list[Genome]:
    """Known solvers on an even choice of a grid's times."""
    nodes = even(len(grid) - 2, nfe - 1)
    own = grid[[0, *(v + 1 for v in nodes), -1]]
    known = [
        SolverSchedule.ddim(own),
        SolverSchedule.dpmpp_2m(own),
        *(SolverSchedule.multistep(own, order, "eps") for order in (2, 3)),
        *(SolverSchedule.unipc(own, order) for order in (2, 3)),
    ]
    return [Genome(nodes, tuple(replace(step, s=0.0) for step in schedule.steps)) for schedule in known]


def _features(genomes: Sequence[Genome], n: int) -> Tensor:
    return torch.tensor([g.features(n) for g in genomes])
