"""`python -m fewstep_video.bench.stream`: the causal student of bouncing balls as a stream: exactness, cost, quality over time.

Each is trained in DIR/SEED/RECIPE after those that it needs, for every seed anew; finished trainings and rows lie there and are not made again.

    exactness    largest difference between cached blocks and the call of all blocks at once; a clip of 48 frames against one of 24, bit for bit
    cost         CPU seconds per block and resident memory around block 20 and block 200; frames per wall second at 32x32 pixels in four steps, on --threads
    quality      over 120 frames: seam at the borders of blocks, drift of colours, balls counted right, mFVD of 8 frames at several places; the same with
                 the sink taken away from the same weights; the teacher in whole clips beside it
    skipping     share of the blocks of a still input that the similarity filter skips
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.bench.trainings import cost, trained
from fewstep.generator import pretrained
from fewstep.guidance.similarity import SimilarityFilter
from fewstep_video.bench import shapes
from fewstep_video.bench.targets import Target, kept, options, table
from fewstep_video.causal_video import CausalVideo
from fewstep_video.metrics.drift import drift
from fewstep_video.metrics.laws import mfvd
from fewstep_video.metrics.seam import seam
from fewstep_video.metrics.truth import truth_figures
from fewstep_video.nets.block_attention import Window
from fewstep_video.preview import write_picture
from fewstep_video.sheet import contact_sheet
from fewstep_video.stream.follow import Follow
from fewstep_video.stream.skipping import Skipping
from fewstep_video.worlds import Bouncing

WORLD, FRAMES, BLOCKS, TEACHER = Bouncing(), 120, 210, "bouncing_teacher"
LABEL = torch.tensor([0])

TARGETS = [
    Target("cached against whole", lambda r: r["exactness"]["difference"], at_most=1e-5),
    Target("prefix is the same, bit for bit", lambda r: r["exactness"]["prefix"], at_least=1),
    Target("CPU seconds of block 200 over block 20", lambda r: r["cost"]["seconds_ratio"], at_most=1.05),
    Target("memory at block 200 over block 20", lambda r: r["cost"]["memory_ratio"], at_most=1.05),
    Target("frames per second at 32x32", lambda r: r["cost"]["fps"], at_least=10),
    Target("seam", lambda r: r["stream"]["seam"], at_most=1.25, at_least=0.8),
    Target("drift of the mean", lambda r: abs(r["stream"]["drift_mean"]), at_most=0.05),
    Target("drift of the deviation", lambda r: abs(r["stream"]["drift_std"]), at_most=0.05),
    Target(
        "late mFVD without sink over with it",
        lambda r: r["no sink"]["mfvd_112"] / r["stream"]["mfvd_112"],
        at_least=1.1,
    ),
    Target("skipped of a still input", lambda r: r["skipping"]["share"], at_least=0.9),
]


def loaded(place: Path) -> CausalVideo:
    """The student that validation chose."""
    return cast(CausalVideo, pretrained(str(place / "best")).eval())


@torch.no_grad()
def exactness(place: Path) -> dict[str, float]:
    """Of the trained weights, beyond the window's length."""
    model, g = loaded(place), torch.Generator().manual_seed(0)
    assert model.shape is not None
    channels, _, height, width = model.shape
    noisy, clean = (torch.randn(2, channels, 24, height, width, generator=g) for _ in range(2))
    cond, t = {"label": torch.zeros(2, dtype=torch.long)}, torch.full((2,), 0.7)
    whole = model.denoiser.raw(noisy, t, {**cond, "past": clean})
    told, past, found = cond, clean[:, :, :0], []
    for k in range(0, 24, model.size):
        told = model.continued(told, past)
        found.append(model.denoiser.raw(noisy[:, :, k : k + model.size], t, told))
        past = clean[:, :, k : k + model.size]
    difference = (torch.cat(found, 2) - whole).abs().max().item()
    prefix = torch.equal(model(LABEL, 48, seed=1)[:, :, :24], model(LABEL, 24, seed=1))
    return {"difference": difference, "prefix": float(prefix)}


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cost_of(place: Path, threads: int, side: int = 32) -> dict[str, float]:
    """Means of the ten blocks around block 20 and around the last but ten."""
    model, before = loaded(place), torch.get_num_threads()
    torch.set_num_threads(threads)
    blocks, stream, seconds, memory = BLOCKS, model.stream(LABEL, area=(side, side)), [], []
    begin = time.perf_counter()
    for _ in range(blocks):
        start = time.process_time()
        next(stream)
        seconds.append(time.process_time() - start)
        memory.append(resident())
    wall = time.perf_counter() - begin
    torch.set_num_threads(before)
    early, late = (slice(k - 5, k + 5) for k in (20, blocks - 10))
    ratios = [
        torch.tensor(v[late], dtype=torch.float64).median() / torch.tensor(v[early], dtype=torch.float64).median()
        for v in (seconds, memory)
    ]
    found = {"seconds_ratio": ratios[0].item(), "memory_ratio": ratios[1].item(), "fps": blocks * model.size / wall}
    return found | {"seconds_per_block": float(torch.tensor(seconds).median()), "threads": threads, "side": side}


def quality(place: Path, args: argparse.Namespace, seed: int, sink: bool = True) -> dict[str, Any]:
    """Of long clips."""
    model = loaded(place)
    if not sink:
        without_sink(model)
    parts = [range(i, min(i + shapes.BATCH, args.clips)) for i in range(0, args.clips, shapes.BATCH)]
    labels = torch.zeros(args.clips, dtype=torch.long)
    with torch.no_grad():
        video = torch.cat([model(labels[list(p)], FRAMES, 1000 + seed, clips=p) for p in parts])
    write_picture(place / f"stream{'' if sink else '_no_sink'}.png", contact_sheet(video[:4, :, ::6]))
    return figures(video, labels, model.size, args, seed) | cost(place)


def without_sink(model: CausalVideo) -> None:
    """Take the sink away; the window keeps its length."""
    net: Any = model.denoiser.net
    net.sink, net.reach = 0, Window(net.reach.length, 0, net.positions)


def figures(video: Tensor, labels: Tensor, size: int, args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Means over clips."""
    real = shapes.real_clips(WORLD, args.real, seed)
    found = {"seam": seam(video, size).median().item()}
    found |= {f"drift_{k}": v.mean().item() for k, v in drift(video).items()}
    for first in (0, 40, 112):
        part = video[:, :, first : first + 8]
        found[f"mfvd_{first}"] = mfvd(real, part)
        found[f"count_{first}"] = truth_figures(WORLD, part, labels)["count"].mean().item()
    return {k: round(v, 5) for k, v in found.items()}


def skipping(place: Path) -> dict[str, float]:
    """Of 110 equal blocks."""
    model = loaded(place)
    stage = Skipping(Follow(model, LABEL, 0.6), SimilarityFilter(0.98, generator=torch.Generator().manual_seed(0)))
    still = WORLD.balanced(1, 0).video[:, :, :1].expand(-1, -1, model.size, -1, -1)
    for _ in range(110):
        stage(still)
    return {"share": stage.skipped / 110}


def rows(args: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """A row per question."""
    place = trained("video/bouncing_stream", seed, args.folder, args.set)
    whole = shapes.System(TEACHER, "last", 50)
    teacher = args.folder / str(seed) / TEACHER
    questions = {
        "teacher 50": partial(shapes.measured, teacher, whole, WORLD, args.clips, args.real, seed),
        "exactness": partial(exactness, place),
        "cost": partial(cost_of, place, args.threads),
        "stream": partial(quality, place, args, seed),
        "no sink": partial(quality, place, args, seed, sink=False),
        "skipping": partial(skipping, place),
    }
    for name, make in questions.items():
        yield {"system": name, "seed": seed} | kept(place / f"stream_{name.replace(' ', '_')}.json", make)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and measure what is missing, and print all rows and targets as JSON."""
    parser = options("stream", __doc__, clips=256)
    parser.add_argument("--threads", type=int, default=2, help="of the measurement of frames per second (default 2)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = (row for seed in args.seeds for row in rows(args, seed))
    return table({"bench": "video stream"}, args, found, TARGETS)


if __name__ == "__main__":
    sys.exit(main())
