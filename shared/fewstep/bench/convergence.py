"""`fewstep bench convergence`: how many iterations DisBack needs on the ring, and its recipe without it (DMD), from near and from far.

Each is trained with a validation every so many iterations; the curve is the energy distance of the averaged student to its teacher's
samples (`val/energy`), and `reached` says, for each level, after how many iterations it has come below it to stay. All iterations count:
DisBack's first stage, and with a `ratio` those in which the student waits. CPU seconds are with the validations. The student begins as its
teacher, or with all its samples `shift` standard deviations of the data beside those, where the teacher has never been trained.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from fewstep import recipes
from fewstep.bench import distill, trainings
from fewstep.bench.distill_worlds import Ring, made
from fewstep.bench.timing import machine, write
from fewstep.generator import Generator
from fewstep.nets import MLP

METHODS, LEVELS, SHIFTS = ("disback", "without"), (0.3, 0.1, 0.03, 0.01), (0.0, 6.0)


class Curve(L.Callback):
    """(iterations, val/energy) of every validation."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = int(pl_module.get_buffer("iteration"))
        self.points.append((done, float(trainer.callback_metrics["val/energy"])))


def reached(points: Sequence[tuple[int, float]], level: float) -> int | None:
    """The first iteration from which on the curve is below the level; None where it does not end below."""
    found = None
    for done, value in points:
        found = None if value >= level else done if found is None else found
    return found


def without(model: dict[str, Any]) -> dict[str, Any]:
    """The model of a DisBack recipe as plain DMD."""
    own = ("degradation", "kept", "backtracking")
    return made("fewstep.distill.dmd.DMD", {k: v for k, v in model["init_args"].items() if k not in own})


@torch.no_grad()
def move(student: Generator, by: float) -> None:
    """Add `by` to the first coordinate of all samples of a one-step student whose network, an MLP, puts out velocities."""
    net, t = student.denoiser.net, float(student.grid(student.denoiser.path, 1)[0])
    assert isinstance(net, MLP)
    net.last.bias[0] -= by / t


def measured(method: str, shift: float, seed: int, folder: Path, every: int) -> dict[str, Any]:
    """The row of one method."""
    from fewstep.train.fit import instantiate

    world, name = Ring(), "ring_disback"
    for teacher in distill.plan(world)[name]:
        distill.trained(teacher, world, seed, folder)
    recipe = yaml.safe_load((recipes.folder() / f"toy/{name}.yaml").read_text())
    if method == "without":
        recipe["model"] = without(recipe["model"])
    with tempfile.TemporaryDirectory() as own:
        recipe["trainer"]["default_root_dir"] = own
        text = yaml.safe_dump(recipe).replace("runs/", f"{folder / world.name / str(seed)}/")
        file = Path(own) / "recipe.yaml"
        file.write_text(text)
        run: Any = instantiate(file, [*trainings.seeded(seed), f"--trainer.val_check_interval={every}"])
        move(run.model.student, shift * world.data(torch.Generator().manual_seed(0))["x0"].std().item())
        curve, start = Curve(), time.process_time()
        run.trainer.callbacks.append(curve)
        run.trainer.fit(run.model, run.datamodule)
        seconds = round(time.process_time() - start, 1)
    found = {str(level): reached(curve.points, level) for level in LEVELS}
    return {
        "method": method,
        "shift": shift,
        "seed": seed,
        "cpu_seconds": seconds,
        "reached": found,
        "curve": curve.points,
    }


def main(threads: int = 1, out: str | None = None, argv: Sequence[str] = ()) -> int:
    """One row per seed, shift and method."""
    parser = trainings.parser("convergence", __doc__, out)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--shifts", nargs="+", type=float, default=list(SHIFTS), metavar="DEVIATIONS")
    parser.add_argument("--every", type=int, default=250, help="iterations between two validations")
    args = parser.parse_args(argv)
    torch.set_num_threads(threads)
    rows = []
    for seed, shift, method in product(args.seeds, args.shifts, args.methods):
        rows.append(measured(method, shift, seed, args.folder.resolve(), args.every))
        sys.stderr.write(f"{method} from {shift:g} seed {seed}: {rows[-1]['reached']}\n")
    write({"bench": "convergence", **machine(), "rows": rows}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(argv=sys.argv[1:]))
