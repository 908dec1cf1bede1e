"""`fewstep search-schedule MODEL`: a table of weights and times for a saved generator, and what it gains."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import torch

from fewstep.artifacts import save
from fewstep.command import UsageError
from fewstep.generator import Generator, pretrained
from fewstep.grids import Explicit
from fewstep.prediction import Prediction
from fewstep.search.boss import search_boss
from fewstep.search.evolve import Evolution
from fewstep.search.fit import Effort, fit_table
from fewstep.search.olss import fit_olss
from fewstep.search.problem import Items, Problem, items_of, problem
from fewstep.search.q_sched import search_q_sched
from fewstep.search.starts import Progress, error, fine_grid
from fewstep.search.times import search_times
from fewstep.search.usf import search_usf
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.schedule import SolverSchedule
from fewstep.solvers.table import Table
from fewstep.train.progress import bar

QUICK = Effort(Evolution(population=24, keep=6, mutants=12, crosses=4, generations=6), rounds=((3, 4), (1, 12)))


def search(
    method: str,
    task: Problem,
    prediction: Prediction,
    nfe: int,
    seed: int = 0,
    quick: bool = False,
    progress: Progress | None = None,
) -> Table:
    """The table of one of the methods of the command line, for a network of this prediction."""
    path, starts, generator = task.path, task.fit, torch.Generator().manual_seed(seed)
    few = Evolution(generations=6) if quick else Evolution()
    methods: dict[str, Callable[[], Table]] = {
        "fit": lambda: fit_table(
            path, starts, task.select, nfe, generator, effort=QUICK if quick else Effort(), progress=progress
        ),
        "olss": lambda: fit_olss(path, starts[:1], nfe),
        "boss": lambda: search_boss(path, starts[:1], nfe),
        "evolve": lambda: search_times(path, starts[:1], nfe, generator, DPMpp2M(), sizes=few, progress=progress),
        "q_sched": lambda: search_q_sched(Table.of(DPMpp2M(), path, fine_grid(path, nfe)), prediction, starts),
        "usf": lambda: search_usf(path, starts[:1], nfe, generator, sizes=few, progress=progress),
    }
    return methods[method]()


def fixed(path: Any, nfe: int) -> dict[str, Table]:
    """What is compared with: known solvers on steps even in lambda."""
    grid = fine_grid(path, nfe)
    known = {"dpmpp_2m": SolverSchedule.dpmpp_2m(grid), "unipc_2": SolverSchedule.unipc(grid, 2)}
    return {"ddim": Table.of(SolverSchedule.ddim(grid), path, grid)} | {
        name: Table.of(solver, path, grid) for name, solver in known.items()
    }


def main(args: argparse.Namespace) -> int:
    """The verb."""
    _check(args)
    model = _generator(args.model)
    target = model if args.target is None else _generator(args.target)
    start = time.process_time()
    with bar() as progress:
        reached = progress.add_task("reference", total=None, figures="")
        task = problem(
            model, _items(model, args), args.starts, args.batch_size, args.seed, args.reference_steps, target=target
        )
        progress.remove_task(reached)
        shown = progress.add_task(f"{args.method} search", total=None, figures="")
        table = search(
            args.method,
            task,
            model.denoiser.prediction,
            args.nfe,
            args.seed,
            args.quick,
            lambda done, total, figure: progress.update(
                shown, completed=done, total=total, figures=f"error {figure:.4g}"
            ),
        )
    errors = {name: error(t, task.path, t.grid, task.report) for name, t in fixed(task.path, args.nfe).items()}
    facts = {
        "model": str(args.model),
        "method": args.method,
        "nfe": table.nfe,
        "seed": args.seed,
        "starts": args.starts,
        "error": error(table, task.path, table.grid, task.report),
        "fixed": errors,
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    table.save(args.out, facts)
    if args.artifact is not None:
        model.solver, model.grid, model.steps = table, Explicit(table.times), table.steps
        save(model.to("cpu"), args.artifact, {"search": facts})
    if args.json:
        print(json.dumps(facts | {"out": str(args.out)}, indent=2))
    else:
        known = ", ".join(f"{name} {value:.4g}" for name, value in errors.items())
        sys.stderr.write(f"wrote {args.out}: error {facts['error']:.4g} on unseen starts ({known})\n")
    return 0


def _generator(source: str) -> Generator:
    return pretrained(source).requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def _check(args: argparse.Namespace) -> None:
    if args.nfe < 1 or args.batch_size < 1 or args.reference_steps < 10:
        raise UsageError("--nfe and --batch-size must be at least 1 and --reference-steps at least 10")
    if (args.batch is None) == (args.shape is None):
        raise UsageError("give either --batch FILE, or --shape of one state for a model without conditions")
    if FilePath(args.out).is_dir():
        raise UsageError(f"{args.out} is a folder; --out is a file")


def _items(model: Generator, args: argparse.Namespace) -> Items:
    if args.shape is not None:
        return Items(tuple(args.shape), {}, None)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        batch = load_file(args.batch)
    except (OSError, SafetensorError) as err:
        raise UsageError(f"{args.batch} cannot be read as safetensors: {err}") from err
    device = next(model.parameters()).device
    try:
        return items_of(model, {k: v.to(device) for k, v in batch.items()})
    except KeyError as err:
        raise UsageError(f"{args.batch} has no tensor {err}; it has {', '.join(sorted(batch))}") from err
