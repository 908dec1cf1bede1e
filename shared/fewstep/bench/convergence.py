"""`fewstep bench convergence`: how many iterations methods need on the ring, such as DisBack beside the same method without it.

Each recipe is trained with a validation every so many iterations; the curve is the energy distance of the averaged student to its teacher's
samples (`val/energy`), and `reached` says, for each level, after how many iterations it has come below it to stay. All iterations count:
DisBack's first stage, and with a `ratio` those in which the student waits. CPU seconds are with the validations.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from fewstep import recipes
from fewstep.bench import distill, trainings
from fewstep.bench.distill_worlds import Ring
from fewstep.bench.timing import machine, write

METHODS, LEVELS = ("dmd", "disback"), (0.3, 0.1, 0.03, 0.01)


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


def measured(method: str, seed: int, folder: Path, every: int) -> dict[str, Any]:
    """The row of one method."""
    from fewstep.train.fit import instantiate

    world, name = Ring(), f"ring_{method}"
    for teacher in distill.plan(world)[name]:
        distill.trained(teacher, world, seed, folder)
    recipe = yaml.safe_load((recipes.folder() / f"toy/{name}.yaml").read_text())
    with tempfile.TemporaryDirectory() as own:
        recipe["trainer"]["default_root_dir"] = own
        text = yaml.safe_dump(recipe).replace("runs/", f"{folder / world.name / str(seed)}/")
        file = Path(own) / "recipe.yaml"
        file.write_text(text)
        run: Any = instantiate(file, [*trainings.seeded(seed), f"--trainer.val_check_interval={every}"])
        curve, start = Curve(), time.process_time()
        run.trainer.callbacks.append(curve)
        run.trainer.fit(run.model, run.datamodule)
        seconds = round(time.process_time() - start, 1)
    found = {str(level): reached(curve.points, level) for level in LEVELS}
    return {"method": method, "seed": seed, "cpu_seconds": seconds, "reached": found, "curve": curve.points}


def main(threads: int = 1, out: str | None = None, argv: Sequence[str] = ()) -> int:
    """One row per method and seed."""
    parser = trainings.parser("convergence", __doc__, out)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--every", type=int, default=250, help="iterations between two validations")
    args = parser.parse_args(argv)
    torch.set_num_threads(threads)
    rows = []
    for seed in args.seeds:
        for method in args.methods:
            rows.append(measured(method, seed, args.folder.resolve(), args.every))
            sys.stderr.write(f"{method} seed {seed}: {rows[-1]['reached']}\n")
    write({"bench": "convergence", **machine(), "rows": rows}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(argv=sys.argv[1:]))
