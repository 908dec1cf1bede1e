"""Searched tables against every fixed solver of diffusers: `python -m fewstep.bench.searched --out FILE`.

error = root mean square distance to the end point of the probability flow from the same start. A table is fitted on some starts (half random, half hard), chosen
on others and reported on a third set, both random, which it never saw; of the fixed solvers the best setting on that third set is reported.
Worlds: the mixtures of worlds.py on the path of Stable Diffusion; or, with --model and --batch, a saved generator.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.bench import peers
from fewstep.bench.timing import machine, write
from fewstep.bench.worlds import World, mixture_worlds
from fewstep.metrics import sliced_wasserstein
from fewstep.paths import DDPM
from fewstep.sampling import sample
from fewstep.search.fit import Effort, fit_table, fixed_tables, grown, refined
from fewstep.search.problem import Problem, items_of, problem
from fewstep.search.run import QUICK
from fewstep.search.starts import Starts, error, hardest, joined, reference, taken
from fewstep.solvers.table import Table

PATH = DDPM(beta_start=0.00085, beta_end=0.012, scaled=True)
# Starts to fit, to select by and to report on, by dimension. Half of those to fit are random, the others the hardest of HARDEST times as
# many. In 64 dimensions a start in two thousand that ends in another mode decides about the mean: of 16384 eight did by a fitted table and thirty
# by the best of diffusers, so that it takes a hundred thousand to tell two tables apart.
FITTED = {2: 1024, 64: 2048, 3072: 512}
SELECTED = {2: 16384, 64: 65536, 3072: 16384}
REPORTED = {2: 16384, 64: 131072, 3072: 8192}
PART = 16384
# Of the batches to select by and of those to refine on: more would not fit into memory with all their estimates, or with all derivatives.
LARGEST, DIFFERENTIATED = {3072: 4096}, {64: 16384, 3072: 1024}
HARDEST = 8
EFFORT = {
    2: Effort(rounds=((4, 3), (2, 24))),
    64: Effort(rounds=((4, 3), (4, 24))),
    3072: Effort(rounds=((4, 3), (3, 20))),
}
# What is found is refined on so many more starts, by so many iterations.
REFINED = {64: (30720, 12), 3072: (3584, 12)}
# How many settings of the fixed solvers are run on all starts, after a trial of all of them on a few.
FINALISTS, TRIED = 6, 64


class Task(NamedTuple):
    """What is compared: its name, the problem, further starts to refine on and by how many iterations, and the error of the reference."""

    name: str
    problem: Problem
    more: list[Starts]
    iterations: int
    doubt: float


def mixture_task(name: str, world: World, seed: int, report: int | None) -> Task:
    """A mixture world; drawn by the seed."""
    dim = int(name.split("-")[0])
    count, generator = FITTED[dim], torch.Generator().manual_seed(1000 + seed)

    def solved(x: int | Tensor, steps: int = 300) -> Starts:
        x = world.start(x, generator) if isinstance(x, int) else x
        return reference(world.denoise, x, PATH, steps=steps, clean=PATH.t_min)

    def mixed(count: int) -> Starts:
        plain, pool = solved(count // 2), solved(HARDEST * count // 2, steps=100)
        probes = [(t, t.grid) for t in fixed_tables(PATH, [plain], 8, PATH.t_min)[:2]]
        hard = solved(pool.x[hardest(pool, PATH, probes, count // 2)])
        return taken(joined(plain, hard), torch.randperm(count, generator=generator))

    # The evolution and the trials of fixed tables see the first batch alone.
    fit, select = _quartered(mixed(count)), _quartered(solved(SELECTED[dim], steps=100))
    reported = report or REPORTED[dim]
    unseen = [solved(min(PART, reported - done)) for done in range(0, reported, PART)]
    few, first = slice(2048), unseen[0]
    doubt = (solved(first.x[few], steps=150).target - first.target[few]).square().mean().sqrt().item()
    more, iterations = REFINED.get(dim, (0, 0))
    others = [mixed(more)] if more else []
    return Task(
        name,
        Problem(PATH, fit, _parts(select, LARGEST.get(dim)), unseen),
        _parts(others, DIFFERENTIATED.get(dim)),
        iterations,
        doubt,
    )


def _parts(batches: list[Starts], most: int | None) -> list[Starts]:
    """The batches in parts of at most so many starts."""
    return [taken(b, part) for b in batches for part in torch.arange(len(b.x)).split(most or len(b.x))]


def _quartered(starts: Starts) -> list[Starts]:
    """A quarter, and the rest."""
    n = len(starts.x)
    return [taken(starts, part) for part in torch.arange(n).split([n // 4, n - n // 4])]


def compare(
    whole: Task, nfe: int, seed: int, effort: Effort, clean: float | None, smaller: Table | None
) -> tuple[Table, dict[str, Any]]:
    """The fitted table, which also begins from a smaller one; and its row beside the fixed solvers."""
    task, start = whole.problem, time.process_time()
    table = fit_table(
        task.path,
        task.fit,
        task.select,
        nfe,
        torch.Generator().manual_seed(seed),
        initial=[] if smaller is None else [grown(smaller, nfe, clean)],
        effort=effort,
        clean=clean,
    )
    if whole.more:
        table = refined(table, [*task.fit, *whole.more], task.select, whole.iterations, clean)
    seconds = time.process_time() - start
    ours = error(table, task.path, table.grid, task.report)
    few = task.report[0]
    trial = [few._replace(x=few.x[:TRIED], target=few.target[:TRIED])] if few.y is None else task.select[:1]
    tried = peers.errors(peers.peers(), task.path, trial, nfe)
    finalists = [p for peer in list(tried)[:FINALISTS] for p in (peer, peer._replace(exact=False))]
    table_of_peers = peers.errors(list(dict.fromkeys(finalists)), task.path, task.report, nfe)
    best, least = next(iter(table_of_peers.items()))
    kinds = {p.scheduler: e for p, e in reversed(tried.items())}
    return table, {
        "nfe": nfe,
        "seed": seed,
        "ours": ours,
        "fitted_error": error(table, task.path, table.grid, task.fit),
        "diffusers": least,
        "diffusers_solver": best.name,
        "ratio": ours / least,
        **_distances(table, best, task, nfe),
        "cpu_seconds": round(seconds, 1),
        "settings_that_ran": len(tried),
        "best_of_each_scheduler_on_a_few_starts": dict(sorted(kinds.items(), key=lambda item: item[1])),
        "times": table.times,
        "largest_sum_of_weights": max(sum(map(abs, (*line.x, *line.e, line.y))) for line in table.lines),
    }


@torch.no_grad()
def _distances(table: Table, best: peers.Peer, task: Problem, nfe: int) -> dict[str, float]:
    """Sliced Wasserstein distances of the end points to the reference end points, as samples; and what half of the starts stay below.

    The median tells bulk accuracy from the few starts near a border between modes that end in the other one: those rule the mean.
    """
    levels, targets = peers.Levels(task.path), torch.cat([p.target.flatten(1) for p in task.report])
    own = [sample(p.denoise, p.x, task.path, table, table.grid, p.y) for p in task.report]
    theirs = [_end(peers.run(best, levels, p, nfe)) for p in task.report]
    found = {}
    for name, parts in (("ours", own), ("diffusers", theirs)):
        ends = torch.cat([e.flatten(1) for e in parts])
        found[f"{name}_sliced_wasserstein"] = sliced_wasserstein(ends, targets, generator=_seeded()).item()
        found[f"{name}_median"] = (ends - targets).square().mean(1).sqrt().median().item()
    return found


def _end(x: Tensor | None) -> Tensor:
    assert x is not None  # it has run on these starts before
    return x


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def network_task(args: argparse.Namespace, seed: int) -> Task:
    """The same of a saved generator and a batch of its data."""
    from safetensors.torch import load_file

    from fewstep.generator import pretrained

    model = pretrained(args.model).requires_grad_(False)
    items = items_of(model, load_file(args.batch))
    task = problem(model, items, args.starts, args.batch_size, seed, args.reference_steps, args.report or 256)
    part = task.report[0]
    coarse = reference(part.denoise, part.x, task.path, part.y, args.reference_steps // 2)
    return Task("network", task, [], 0, (coarse.target - part.target).square().mean().sqrt().item())


def main(argv: Sequence[str] | None = None) -> int:
    """Every world and seed asked for; --out is written anew after each row."""
    parser = argparse.ArgumentParser(prog="python -m fewstep.bench.searched", description=__doc__)
    parser.add_argument("--out", metavar="FILE", required=True)
    parser.add_argument(
        "--world", help='only the mixture worlds whose name begins so, such as "64-d" or "2-d, cfg 7.5"'
    )
    parser.add_argument("--model", metavar="DIR", help="an artifact instead of the mixtures")
    parser.add_argument("--batch", metavar="FILE", help="safetensors of a data batch of that artifact")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 8, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--report", type=int, help="starts to report on (default: by the dimension; 256 of an artifact)"
    )
    parser.add_argument("--starts", type=int, default=32, help="starts to fit, of an artifact (default 32)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--reference-steps", type=int, default=40, help="of the reference, of an artifact (default 40)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        worlds = {n: w for n, w in mixture_worlds(PATH).items() if args.world is None or n.startswith(args.world)}
        found = (mixture_task(n, w, seed, args.report) for n, w in worlds.items())
        for task in [network_task(args, seed)] if args.model else found:
            table = None
            for nfe in sorted(args.nfe):
                dim = 0 if args.model else int(task.name.split("-")[0])
                effort, clean = (EFFORT[dim], PATH.t_min) if dim else (QUICK, None)
                table, figures = compare(task, nfe, seed, effort, clean, table)
                row = {"world": task.name, **figures, "reference_error": task.doubt}
                rows.append(row)
                sys.stderr.write(
                    f"{task.name} nfe {nfe} seed {seed}: {row['ours']:.5f} against {row['diffusers']:.5f}\n"
                )
                write({"bench": "searched", **machine(), "model": args.model, "rows": rows}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
