"""`fewstep pairs MODEL --out DIR -n N`: the verb, under torchrun or not."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from fewstep import solvers
from fewstep.artifacts import build
from fewstep.command import UsageError
from fewstep.generator import pretrained
from fewstep.pairs.job import Job
from fewstep.pairs.make import make_pairs
from fewstep.solvers.base import Solver
from fewstep.train.progress import bar


def main(args: argparse.Namespace) -> int:
    """The verb."""
    job = Job(
        args.n,
        args.seed,
        args.steps,
        None if args.solver is None else _solver(args.solver),
        _states(args.states or []),
        args.cfg,
        None if args.shape is None else tuple(args.shape),
        args.shard_size,
        args.batch_size,
    )
    batch = None if args.batch is None else _batch(args.batch)
    with _processes() as (rank, ranks):
        model = pretrained(args.model).to(_device())
        # All ranks do the same work at the same speed: the first one's bar tells the time left of all.
        with bar() if rank == 0 else _silent() as progress:
            share = f" (process 1 of {ranks})" if ranks > 1 else ""
            shown = progress and progress.add_task(f"pairs{share}", total=None, figures="")

            def tick(done: int, total: int) -> None:
                if progress is not None and shown is not None:
                    progress.update(shown, completed=done, total=total)

            manifest = make_pairs(model, args.out, job, batch, args.model, tick)
        if rank == 0:
            _report(args, manifest)
    return 0


def _report(args: argparse.Namespace, manifest: Mapping[str, Any]) -> None:
    size = sum(entry["size"] for entry in manifest["shards"])
    facts = {"out": args.out, "samples": args.n, "shards": len(manifest["shards"]), "bytes": size}
    if args.json:
        print(json.dumps(facts | {"times": manifest["job"]["times"]}, indent=2))
    else:
        sys.stderr.write(f"{args.out}: {args.n} samples in {facts['shards']} shards, {size / 1e6:.1f} MB\n")


@contextmanager
def _processes() -> Iterator[tuple[int, int]]:
    """(number of this process, how many): those of torchrun, or one."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1 or dist.is_initialized():
        yield (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return
    # Only names and checksums are exchanged, so gloo serves everywhere; the last to finish is waited for however long it takes.
    dist.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        yield dist.get_rank(), ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def _silent() -> Iterator[None]:
    yield None


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _solver(text: str) -> Solver:
    """A class of fewstep.solvers by its name, any class by its path, or a description in JSON."""
    if text.startswith("{"):
        try:
            described = json.loads(text)
        except json.JSONDecodeError as err:
            raise UsageError(f"--solver is not JSON: {err}") from err
    else:
        described = {"class_path": text if "." in text else f"fewstep.solvers.{text}"}
    solver = build(described, where="--solver")
    if not isinstance(solver, Solver):
        known = ", ".join(sorted(n for n, v in vars(solvers).items() if isinstance(v, type) and issubclass(v, Solver)))
        raise UsageError(f"--solver {text} is no solver; there is {known}")
    return solver


def _states(given: list[str]) -> tuple[int, ...] | Literal["all"]:
    if given == ["all"]:
        return "all"
    try:
        return tuple(int(v) for v in given)
    except ValueError as err:
        raise UsageError(f"--states are numbers of steps, or `all`, not {' '.join(given)}") from err


def _batch(file: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as err:
        raise UsageError(f"{file} cannot be read as safetensors: {err}") from err
