"""`python -m fewstep_video.bench.dcm`: two experts against one, in 4 steps.

Systems: the teacher in 50 steps; both experts with 3 semantic steps and 1 detail step, and 2 and 2; the same experts without the temporal term; one
consistency student that takes as many CPU seconds as both experts together. Families: `shapes` (one disc, whose jerk is known), `bouncing` (two balls),
`asl` (filmed signs, four files held out: give --asl DIR). Each is trained in DIR/SEED/SYSTEM after those that it needs, for every seed anew; finished
trainings and rows lie there and are not made again.

Checkpoints of the procedural families are chosen by validation on clips that no figure is taken of; those of the filmed ones are the last ones, since
validation sees the held-out files.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.bench.trainings import cost, trained
from fewstep.generator import pretrained
from fewstep.grids import Explicit, Grid, Shifted
from fewstep_video.bench import shapes
from fewstep_video.bench.targets import Target, kept, options, ratio, table
from fewstep_video.bench.variants import Variant, made
from fewstep_video.data.clips import Clips
from fewstep_video.data.corpora import ClassFiles
from fewstep_video.data.windows import Window
from fewstep_video.distill.dcm import Parts
from fewstep_video.metrics.flow import flow_figures
from fewstep_video.metrics.laws import law_figures
from fewstep_video.metrics.truth import truth_figures
from fewstep_video.nets.experts import Experts
from fewstep_video.preview import write_picture
from fewstep_video.sheet import contact_sheet
from fewstep_video.video_generator import VideoGenerator

FAMILIES = (*shapes.WORLDS, "asl")
INCOHERENT = "--model.init_args.coherence=0"
PARTS = Parts(Shifted(5.0))


def two_and_two(model: VideoGenerator) -> Grid:
    """Two steps of each expert, at their nodes."""
    times = PARTS.times(model.denoiser.path)
    split = PARTS.steps - PARTS.kappa
    return Explicit(tuple(float(times[k]) for k in (0, split // 2, split, split + PARTS.kappa // 2, -1)))


def systems(family: str) -> dict[str, Variant]:
    """Name -> training, but for the student of as many CPU seconds."""
    still = Variant(f"{family}_dcm_semantic", f"{family}_dcm_semantic_incoherent", (INCOHERENT,))
    without = Variant(f"{family}_dcm", f"{family}_dcm_incoherent", (), {f"{family}_dcm_semantic": still})
    return {
        "experts 3+1": Variant(f"{family}_dcm"),
        "experts 2+2": Variant(f"{family}_dcm"),
        "no coherence 3+1": without,
    }


def equal(family: str, seed: int, args: argparse.Namespace) -> Variant:
    """Consistency distillation of as many CPU seconds as both experts, by those of an iteration of its own recipe."""
    both = sum(
        cost(trained(f"video/{family}_dcm{part}", seed, args.folder, args.set))["training_cpu"]
        for part in ("", "_semantic")
    )
    own = cost(trained(f"video/{family}_lcm", seed, args.folder, args.set))
    n = max(round(both * own["iterations"] / max(own["training_cpu"], 1e-9)), 1)
    return Variant(f"{family}_lcm", f"{family}_lcm_equal", (f"--model.init_args.iterations={n}",))


def targets(family: str) -> list[Target]:
    """Of the issue."""
    share = Target("parameters of the detail expert", lambda r: r["experts 3+1"]["extra_parameters"], at_most=0.25)
    if family == "asl":
        return [
            share,
            Target("warp error/teacher", ratio("warp", "experts 3+1", "teacher 50"), at_most=1.3),
            Target("dynamic degree/real", ratio("dynamic", "experts 3+1", "real"), at_most=1.5, at_least=0.5),
            Target("teacher's warp error/real", ratio("warp", "teacher 50", "real"), at_most=3),
            Target("rFVD/teacher", ratio("rfvd", "experts 3+1", "teacher 50"), at_most=1.5),
            Target("KVD/teacher", ratio("kvd", "experts 3+1", "teacher 50"), at_most=1.5),
        ]
    found = [share] + [
        Target(f"mFVD({k})/one expert", ratio("mfvd", f"experts {k}", "one expert 4"), at_most=0.9)
        for k in ("3+1", "2+2")
    ]
    if family == "shapes":
        found += [Target("jerk/no coherence", ratio("jerk", "experts 3+1", "no coherence 3+1"), at_most=0.9)]
    return found


def held_out(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """(clips, labels) of the held-out files."""
    data = Clips(ClassFiles(args.asl), Window(8, 32, 32, 2), validate_on=args.real)
    data.setup()
    return data.val["video"], data.val["label"]


def real_signs(args: argparse.Namespace) -> dict[str, float]:
    """Figures of the held-out files themselves."""
    video, _ = held_out(args)
    return filmed(video, video)


def filmed(video: Tensor, real: Tensor) -> dict[str, float]:
    """Figures of filmed clips."""
    flow = flow_figures(video)
    laws = law_figures(real, video) if video is not real else {}
    return {
        k: round(v, 6) for k, v in (laws | {k: float(getattr(flow, k).mean()) for k in ("warp", "dynamic")}).items()
    }


def measured(place: Path, name: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The row of a system."""
    artifact = "last" if args.family == "asl" or name.startswith("teacher") else "best"
    model = cast(VideoGenerator, pretrained(str(place / artifact))).eval()
    if name.endswith("2+2"):
        model.grid = two_and_two(model)
    steps = 50 if name.startswith("teacher") else 4
    net, size = model.denoiser.net, sum(p.numel() for p in model.parameters())
    about: dict[str, Any] = {"steps": steps, "parameters": size}
    if isinstance(net, Experts):
        own = sum(p.numel() for p in net.adapter_parameters())
        about["extra_parameters"] = own / (size - own)
    about |= cost(place)
    if args.family == "asl":
        real, labels = held_out(args)
        labels = labels.repeat(args.clips // len(labels) + 1)[: args.clips]
        return about | filmed(shapes.generated(model, labels, steps, None, 1000 + seed), real)
    world = shapes.WORLDS[args.family]
    labels = torch.arange(args.clips) % len(world.names)
    video = shapes.generated(model, labels, steps, None, 1000 + seed)
    truth = truth_figures(world, video, labels)
    figures = law_figures(shapes.real_clips(world, args.real, seed), video)
    write_picture(place / f"dcm_{name.rpartition(' ')[2]}.png", contact_sheet(video[:8]))
    return about | {
        k: round(v, 5) for k, v in (figures | {k: v.double().mean().item() for k, v in truth.items()}).items()
    }


def rows(args: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """A row per system."""
    family, folder = args.family, args.folder / str(seed)
    if family == "asl":
        real = kept(folder / "asl_real.json", partial(real_signs, args))
    else:
        make = partial(shapes.floor, shapes.WORLDS[family], args.clips, args.real, seed)
        real = kept(folder / f"{family}_floor.json", make)
    yield {"system": "real", "seed": seed} | real
    found = {"teacher 50": Variant(f"{family}_teacher")} | systems(family)
    for name in (*found, "one expert 4"):
        variant = found[name] if name in found else equal(family, seed, args)
        place = made(variant, seed, args.folder, args.set)
        file = place / f"dcm_{name.rpartition(' ')[2]}.json"
        yield {"system": name, "seed": seed} | kept(file, partial(measured, place, name, args, seed))


def main(argv: Sequence[str] | None = None) -> int:
    """Train and measure what is missing, and print all rows and targets as JSON."""
    parser = options("dcm", __doc__)
    parser.add_argument("--family", choices=FAMILIES, default="shapes")
    parser.add_argument("--asl", metavar="DIR", help="the filmed signs, for --family asl")
    args = parser.parse_args(argv)
    if args.family == "asl":
        if args.asl is None:
            parser.error("--family asl needs --asl DIR")
        args.set.append(f"--data.init_args.corpus.init_args.folder={args.asl}")
    torch.set_num_threads(1)
    found = (row for seed in args.seeds for row in rows(args, seed))
    return table({"bench": "video dcm", "family": args.family}, args, found, targets(args.family))


if __name__ == "__main__":
    sys.exit(main())
