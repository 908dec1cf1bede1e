"""`python -m fewstep_video.bench.mcm`: what motion apart from appearance and a critic of pictures do for a consistency student.

Systems, in 4, 2 and 1 steps: consistency distillation; MCM with its learnt motion and sharper stills as its pictures; the ablations MCM with raw motion,
and MCM whose critic has no weight. All take as many iterations. Each is trained in DIR/SEED/SYSTEM after those that it needs, for every seed anew;
finished trainings and rows lie there and are not made again.

Figures: `pictures`, the aFID to sharper stills, others than training saw; mFVD and rFVD to the clips' own world. Checkpoints are chosen by the mFVD of
validation, on clips that no figure is taken of. The critic's network is none of those that figures are taken with.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.generator import pretrained
from fewstep_video.bench import shapes
from fewstep_video.bench.targets import Target, kept, options, ratio, table
from fewstep_video.bench.variants import Variant, made
from fewstep_video.data.pictures import Stills
from fewstep_video.metrics.laws import afid
from fewstep_video.video_generator import VideoGenerator
from fewstep_video.worlds import World

RAW = "--model.init_args.motion=fewstep_video.distill.motion.Raw"
NO_CRITIC = "--model.init_args.adversary.init_args.weight=0"


def systems(family: str) -> dict[str, Variant]:
    """Name -> training."""
    return {
        "lcm": Variant(f"{family}_lcm"),
        "mcm": Variant(f"{family}_mcm"),
        "mcm raw": Variant(f"{family}_mcm", f"{family}_mcm_raw", (RAW,)),
        "mcm no critic": Variant(f"{family}_mcm", f"{family}_mcm_no_critic", (NO_CRITIC,)),
    }


TARGETS = [
    Target("aFID to the pictures(4)/consistency", ratio("pictures", "mcm 4", "lcm 4"), at_most=0.8),
    Target("mFVD(4)/consistency", ratio("mfvd", "mcm 4", "lcm 4"), at_most=1.1),
    Target("mFVD(4) of raw motion/MCM", ratio("mfvd", "mcm raw 4", "mcm 4"), at_least=1.1),
]


def pictures(world: World, n: int, seed: int) -> Tensor:
    """Sharper stills, the set that the recipe trains with."""
    return Stills(replace(world, edge=0.1)).images(n, torch.Generator().manual_seed(77_000 + seed))


def measured(place: Path, world: World, steps: int, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The row of a student in so many steps."""
    row = shapes.measured(place, shapes.System(place.name, "best", steps), world, args.clips, args.real, seed)
    model = cast(VideoGenerator, pretrained(str(place / "best"))).eval()
    video = shapes.generated(model, torch.arange(args.clips) % len(world.names), steps, None, 1000 + seed)
    return row | {"pictures": round(afid(pictures(world, args.real, seed), video), 5)}


def floor(world: World, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Real against real; `pictures` of the world's own frames, and of other sharper stills."""
    sharp, others = pictures(world, args.real, seed), pictures(world, args.clips, seed + 1000)
    own = shapes.real_clips(world, args.clips, seed + 1000)
    found = shapes.floor(world, args.clips, args.real, seed)
    return found | {"pictures": round(afid(sharp, own), 5), "pictures_floor": round(afid(sharp, others), 5)}


def rows(args: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """A row per system and number of steps."""
    world, folder = shapes.WORLDS[args.family], args.folder / str(seed)
    real = kept(folder / f"{args.family}_mcm_floor.json", partial(floor, world, args, seed))
    yield {"system": "real", "seed": seed} | real
    for name, variant in systems(args.family).items():
        place = made(variant, seed, args.folder, args.set)
        for steps in (4, 2, 1):
            row = kept(place / f"mcm_{steps}.json", partial(measured, place, world, steps, args, seed))
            yield {"system": f"{name} {steps}", "seed": seed} | row


def main(argv: Sequence[str] | None = None) -> int:
    """Train and measure what is missing, and print all rows and targets as JSON."""
    parser = options("mcm", __doc__)
    parser.add_argument("--family", choices=list(shapes.WORLDS), default="shapes")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = (row for seed in args.seeds for row in rows(args, seed))
    return table({"bench": "video mcm", "family": args.family}, args, found, TARGETS)


if __name__ == "__main__":
    sys.exit(main())
