"""`fewstep video metrics REAL FAKE`: the figures of `metrics` for two sets of clips, with the floor of real against real."""

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

from fewstep.command import UsageError
from fewstep_video.data.windows import InMemory, Window
from fewstep_video.files import VideoError, list_videos
from fewstep_video.generate import loaded
from fewstep_video.metrics import acceleration, consistency, flicker, flow_figures, law_figures
from fewstep_video.metrics.random_features import extractor
from fewstep_video.preview import write_picture
from fewstep_video.sheet import contact_sheet
from fewstep_video.video_generator import VideoGenerator

# Kernel distances are for few clips, Frechet distances for many.
FEW = 500


def main(args: argparse.Namespace) -> int:
    """The subcommand: 0 done; files that cannot be used are named on stderr."""
    for name, least in (("frames", 3), ("size", 8), ("stride", 1), ("count", 4)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name} is at least {least}, not {getattr(args, name)}")
    if args.steps is not None and args.steps < 1:
        raise UsageError(f"--steps is at least 1, not {args.steps}")
    model = loaded(args.fake) if (Path(args.fake) / "config.json").is_file() else None
    frames, height, width = args.frames, args.size, args.size
    if model is not None:
        if model.condition.name != "label" or model.codec is not None:
            raise UsageError(
                f"{args.fake}: metrics generate clips of models of classes in pixels; write others with `video generate`"
            )
        assert model.shape is not None
        frames, height, width = model.shape[1:]
    window = Window(frames, height, width, args.stride)
    real = clips_of(args.real, window, args.count)
    if model is None:
        fake = clips_of(args.fake, Window(frames, height, width), args.count)
    else:
        fake = made(model, args.count, args.steps, args.seed)
    found = figures(real, fake)
    if args.sheet:
        write_picture(args.sheet, contact_sheet(torch.cat([real[:4], fake[:4].expand(-1, 3, -1, -1, -1)])))
    _print(args, found, len(real), len(fake))
    return 0


def figures(real: Tensor, fake: Tensor) -> dict[str, dict[str, float]]:
    """Name -> {"fake", "real"}: of laws, `real` is the floor, one half of the real clips against the other."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    halves = real[order[::2]], real[order[1::2]]
    laws, floor = law_figures(real, fake), law_figures(*halves)
    found = {name: {"fake": value, "real": floor[name]} for name, value in laws.items()}
    of_fake, of_real = single(fake), single(real)
    return found | {name: {"fake": of_fake[name], "real": of_real[name]} for name in of_fake}


def single(video: Tensor) -> dict[str, float]:
    """Means of what is said of single clips."""
    flow = flow_figures(video)
    values = {"flicker": flicker(video), "acceleration": acceleration(video), "consistency": consistency(video)}
    return {k: v.double().mean().item() for k, v in (flow._asdict() | values).items()}


def clips_of(source: str, window: Window, most: int) -> Tensor:
    """(N, 3, F, H, W): windows that follow each other, spread evenly over all videos."""
    place = Path(source)
    if not place.exists():
        raise UsageError(f"{source} does not exist")
    files, reading, kept = list_videos(place, recursive=True) if place.is_dir() else [place], InMemory(), []
    share = -(-most // len(files))
    for file in files:
        try:
            video = reading(file, window)
        except VideoError as error:
            sys.stderr.write(f"fewstep video: left out: {error}\n")
            continue
        starts = torch.linspace(0, video.starts - 1, min(share, video.starts)).round().long().unique()
        kept += [video.clip(int(s)) for s in starts]
    if len(kept) < 4:
        raise VideoError(f"{source}: {len(kept)} clips of {window.frames} frames; allowed: at least 4")
    index = torch.linspace(0, len(kept) - 1, min(most, len(kept))).round().long()
    return torch.stack([kept[int(i)] for i in index])


@torch.no_grad()
def made(model: VideoGenerator, count: int, steps: int | None, seed: int) -> Tensor:
    """Clips of all classes in turn."""
    labels = torch.arange(count) % model.classes
    parts = [range(i, min(i + 32, count)) for i in range(0, count, 32)]
    return torch.cat([model.eval()(labels[list(p)], seed=seed, steps=steps, clips=p) for p in parts])


def _print(args: argparse.Namespace, found: dict[str, dict[str, float]], real: int, fake: int) -> None:
    if min(real, fake) < FEW:
        warnings.warn(
            f"{real} real and {fake} fake clips: below {FEW} compare kvd rather than rfvd and mfvd", stacklevel=1
        )
    if args.json:
        about = {"real": real, "fake": fake, "features": extractor(3).fingerprint}
        print(json.dumps({"clips": about, "figures": found}, indent=2))
        return
    print(f"{'':14}{'fake':>12}{'real':>12}   ({fake} and {real} clips; laws: real against real)")
    for name, value in found.items():
        print(f"{name:14}{value['fake']:12.4f}{value['real']:12.4f}")
