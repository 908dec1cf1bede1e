"""One training of a demo: a recipe that is set up, timed, run under the demo's own name, bar and log."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.train.checkpoints import Checkpoints
from fewstep.train.history import Curves, History
from fewstep.train.progress import TrainingBar
from fewstep.train.shell import Batch, Shell


@dataclass
class Trained:
    """What one training leaves for a report: {"seconds", "cpu_seconds", "iterations", "parameters", ...}, the curves of its log, what it held out."""

    facts: dict[str, Any]
    curves: Curves
    held_out: Any


def pace(cli: Any, clock: Callable[[], float] = time.perf_counter, iterations: int = 4) -> float:
    """Seconds per iteration on this machine, of a recipe that is set up for this alone (cli: of `train.fit.instantiate`)."""
    shell: Shell = cli.model
    cli.datamodule.setup("fit")
    batches = iter(cli.datamodule.train_dataloader())
    backward(shell, next(batches))
    start = clock()
    for _ in range(iterations):
        backward(shell, next(batches))
        shell.done += 1  # so that turns are taken as in training
    return 1.15 * (clock() - start) / iterations  # optimiser, averaging


def backward(shell: Shell, batch: Batch) -> None:
    """The gradients of one batch."""
    torch.stack(list(shell.loss(batch).values())).sum().backward()


def run_stage(cli: Any, place: Path, artifact: str = "last") -> tuple[dict[str, Any], Curves]:
    """Fit, and leave the artifact (`last` or `best`) as the folder `place`, whose name the bar shows; the run's own folder goes.

    cli: of `train.fit.instantiate`. Returns {"seconds", "cpu_seconds", "iterations", "parameters"} and the curves of the log.
    """
    log, runs = History(), Path(cli.trainer.default_root_dir)
    cli.trainer.loggers = [log]
    for callback in cli.trainer.callbacks:
        if isinstance(callback, TrainingBar):
            callback.name = place.name
        if isinstance(callback, Checkpoints):
            callback.every = cli.model.iterations
    began, cpu = time.perf_counter(), time.process_time()
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    facts = {
        "iterations": cli.model.iterations,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "parameters": sum(p.numel() for p in cli.model.student.parameters()),
    }
    (runs / artifact).rename(place)
    shutil.rmtree(runs)
    return facts, log.curves
