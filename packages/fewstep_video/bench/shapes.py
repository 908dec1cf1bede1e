"""`python -m fewstep_video.bench.shapes`: few-step students of procedural clips, with the targets that they are held to.

Families: `shapes` (one disc, the nano size) and `bouncing` (two balls, the tiny size). Systems: the teacher in 50 steps of Euler's rule and, as it
is, in 8, 4, 2, 1; the students of consistency distillation, DMD2 and TDM. Each is trained by its recipe in DIR/SEED/RECIPE after those that it
needs, for every seed anew; finished trainings and rows lie there and are not made again.

DMD2 has a student for four steps and one for one step: the former learns its last step alone, and its rows at two and one step say what that costs.

The checkpoint of a student is chosen on held-out clips by validation (part 0); figures are taken of 512 clips, every class as often as the others,
against 1024 others (part 1 and on). Seconds are CPU seconds per clip, 64 clips at once, on one thread.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fewstep.bench.trainings import cost, trained
from fewstep.generator import pretrained
from fewstep.solvers import DDIM, Solver
from fewstep_video.bench.targets import Target, figure, kept, options, ratio, table
from fewstep_video.data.procedural import HELD_OUT
from fewstep_video.metrics.laws import law_figures
from fewstep_video.metrics.truth import truth_figures
from fewstep_video.preview import write_picture
from fewstep_video.sheet import contact_sheet
from fewstep_video.video_generator import VideoGenerator
from fewstep_video.worlds import Bouncing, MovingDisc, World

BATCH = 64


class System(NamedTuple):
    """How an artifact is sampled: recipe, which of its artifacts, steps, by a solver in place of its own."""

    recipe: str
    artifact: str
    steps: int
    solver: Solver | None = None


def systems(family: str) -> dict[str, System]:
    """Name -> system."""
    teacher, found = f"{family}_teacher", {}
    found["teacher 50"] = System(teacher, "last", 50)
    found |= {f"naive {n}": System(teacher, "last", n, DDIM()) for n in (8, 4, 2, 1)}
    found |= {f"lcm {n}": System(f"{family}_lcm", "best", n) for n in (4, 2, 1)}
    found |= {f"dmd2 {n}": System(f"{family}_dmd2", "best", n) for n in (4, 2, 1)}
    found["dmd2 onestep 1"] = System(f"{family}_dmd2_onestep", "best", 1)
    found |= {f"tdm {n}": System(f"{family}_tdm", "best", n) for n in (4, 2, 1)}
    return found


WORLDS: dict[str, World] = {"shapes": MovingDisc(), "bouncing": Bouncing()}


def real_clips(world: World, n: int, seed: int) -> Tensor:
    """What figures are taken against: clips that neither trained nor chose anything."""
    return world.balanced(n, HELD_OUT + 1 + seed).video


@torch.no_grad()
def generated(model: VideoGenerator, labels: Tensor, steps: int, solver: Solver | None, seed: int) -> Tensor:
    """Clips of labels (N,), in batches."""
    parts = [range(i, min(i + BATCH, len(labels))) for i in range(0, len(labels), BATCH)]
    return torch.cat([model(labels[list(p)], seed=seed, steps=steps, solver=solver, clips=p) for p in parts])


def measured(place: Path, system: System, world: World, clips: int, real: int, seed: int) -> dict[str, Any]:
    """The row of a system."""
    model = cast(VideoGenerator, pretrained(str(place / system.artifact))).eval()
    labels = torch.arange(clips) % len(world.names)
    start = time.process_time()
    video = generated(model, labels, system.steps, system.solver, 1000 + seed)
    seconds = (time.process_time() - start) / clips
    truth = {k: v.double().mean().item() for k, v in truth_figures(world, video, labels).items()}
    figures = law_figures(real_clips(world, real, seed), video) | truth
    write_picture(place / f"{system.artifact}-{system.steps}.png", contact_sheet(video[:8]))
    about = {"recipe": system.recipe, "steps": system.steps, "parameters": sum(p.numel() for p in model.parameters())}
    return about | cost(place) | {k: round(v, 5) for k, v in figures.items()} | {"seconds_per_clip": seconds}


def floor(world: World, clips: int, real: int, seed: int) -> dict[str, Any]:
    """Real against real."""
    other = world.balanced(clips, HELD_OUT + 500_000 + seed)
    truth = truth_figures(world, other.video, other.label)
    figures = law_figures(real_clips(world, real, seed), other.video)
    write = figures | {k: v.double().mean().item() for k, v in truth.items()}
    return {k: round(v, 5) for k, v in write.items()}


def rows(args: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """A row per system, as far as possible from files of an earlier run."""
    world, folder = WORLDS[args.family], args.folder / str(seed)
    yield {"system": "real", "seed": seed} | kept(
        folder / f"{args.family}_floor.json", partial(floor, world, args.clips, args.real, seed)
    )
    for name, system in systems(args.family).items():
        if args.systems and name.rpartition(" ")[0] not in args.systems:
            continue
        place = trained(f"video/{system.recipe}", seed, args.folder, args.set)
        make = partial(measured, place, system, world, args.clips, args.real, seed)
        solver = "naive_" if system.solver is not None else ""
        yield {"system": name, "seed": seed} | kept(place / f"{solver}{system.artifact}_{system.steps}.json", make)


SPEED = Target("4 steps: times faster than 50", ratio("seconds_per_clip", "teacher 50", "dmd2 4"), at_least=10)
TARGETS: dict[str, list[Target]] = {
    "shapes": [
        Target("teacher direction", figure("direction", "teacher 50"), at_least=0.95),
        Target("teacher mFVD", figure("mfvd", "teacher 50"), at_most=90),
        Target("consistency mFVD(1)/naive", ratio("mfvd", "lcm 1", "naive 1"), at_most=0.70),
        Target("consistency rFVD(1)/naive", ratio("rfvd", "lcm 1", "naive 1"), at_most=0.50),
        Target("DMD2 mFVD(1)/naive", ratio("mfvd", "dmd2 1", "naive 1"), at_most=0.60),
        Target("one-step DMD2 mFVD(1)/naive", ratio("mfvd", "dmd2 onestep 1", "naive 1"), at_most=0.60),
        Target("DMD2 mFVD(4)/teacher", ratio("mfvd", "dmd2 4", "teacher 50"), at_most=1.05),
        Target("DMD2 direction(4)", figure("direction", "dmd2 4"), at_least=0.97),
        Target("DMD2 speed(4)", figure("speed", "dmd2 4"), at_most=1.1, at_least=0.9),
        SPEED,
    ],
    "bouncing": [
        Target("teacher mFVD/floor", ratio("mfvd", "teacher 50", "real"), at_most=4),
        Target("DMD2 mFVD(4)/teacher", ratio("mfvd", "dmd2 4", "teacher 50"), at_most=1.2),
        Target("DMD2 mFVD(4)/naive", ratio("mfvd", "dmd2 4", "naive 4"), at_most=0.6),
        Target("DMD2 mFVD(1)/naive", ratio("mfvd", "dmd2 1", "naive 1"), at_most=0.35),
        Target("one-step DMD2 mFVD(1)/naive", ratio("mfvd", "dmd2 onestep 1", "naive 1"), at_most=0.35),
        Target("DMD2 diversity(4)/teacher", ratio("diversity", "dmd2 4", "teacher 50"), at_least=0.7),
        Target("DMD2 blob count(4)", figure("count", "dmd2 4"), at_least=0.95),
        SPEED,
    ],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train and measure what is missing, and print all rows and targets as JSON."""
    parser = options("shapes", __doc__)
    parser.add_argument("--family", choices=list(WORLDS), default="shapes")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="such as teacher naive dmd2; all where not given")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    made = (row for seed in args.seeds for row in rows(args, seed))
    return table({"bench": "video shapes", "family": args.family}, args, made, TARGETS[args.family])


if __name__ == "__main__":
    sys.exit(main())
