"""`fewstep video animate IMAGE OUT`: frames that follow an image or a video; videos are written window by window, in bounded memory."""

import argparse
import json
import time
from collections import deque
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.command import UsageError
from fewstep.train.progress import bar
from fewstep_video.data.windows import Window
from fewstep_video.files import SUFFIXES, WRITE_SUFFIXES, VideoError, VideoWriter, from_bytes, read_frames
from fewstep_video.generate import check, class_of, loaded, text_of, write_clip
from fewstep_video.given_frames import null_condition, windows
from fewstep_video.video_generator import VideoGenerator


def main(args: argparse.Namespace) -> int:
    """The subcommand; the file appears whole or not at all."""
    out = Path(args.output)
    check(args, out)
    if args.overlap < 1 or (args.steps is not None and args.steps < 2):
        raise UsageError(f"--overlap is at least 1 and --steps at least 2, not {args.overlap} and {args.steps}")
    model = loaded(args.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    given, start = first_frames(Path(args.image), model, args.overlap).to(device), time.perf_counter()
    frames, fps = args.frames or own_length(model), args.fps or model.fps
    if frames <= given.shape[2]:
        raise UsageError(f"--frames is at least {given.shape[2] + 1}: {given.shape[2]} are given")
    blocks = windows(
        model, condition(model, args, device), given, frames, args.overlap, args.steps, args.cfg, args.seed
    )
    with bar() as progress:
        task = progress.add_task("frames", total=frames, figures="")
        if out.suffix.lower() in WRITE_SUFFIXES:
            about = {"model": args.model, "image": Path(args.image).name, "seed": args.seed}
            with VideoWriter(out, fps, about=about) as writer:
                for block in chain([given], blocks):
                    writer.write(zoomed(block[0].cpu(), args.zoom))
                    progress.update(task, advance=block.shape[2])
        else:
            write_clip(out, torch.cat([given, *blocks], 2)[0].cpu(), fps, args.zoom)
    done = {
        "output": str(out),
        "frames": frames,
        "given": given.shape[2],
        "seconds": round(time.perf_counter() - start, 3),
    }
    print(json.dumps(done, indent=2) if args.json else f"{out}: {frames} frames, {given.shape[2]} of them given")
    return 0


def first_frames(path: Path, model: VideoGenerator, most: int) -> Tensor:
    """The image, or the last `most` frames of the video, at the size of the model: (1, C, k, H, W) in [-1, 1]."""
    assert model.shape is not None
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    if path.suffix.lower() in SUFFIXES and path.suffix.lower() not in (".gif", ".webp"):
        frames = torch.stack([*deque(read_frames(path), maxlen=most)])
    else:
        frames = picture(path)[None]
    _, _, height, width = pixel_shape(model)
    small = from_bytes(Window(1, height, width).fitted(frames)).transpose(0, 1)[None]
    return small.mean(1, keepdim=True) if model.codec is None and model.shape[0] == 1 else small


def picture(path: Path) -> Tensor:
    """A picture (3, H, W), uint8; the first one of animated ones."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise VideoError(f"{path}: cannot be read as a picture ({error})") from error
    if min(pixels.shape[:2]) < 2:
        raise VideoError(f"{path}: is {pixels.shape[1]}x{pixels.shape[0]} pixels; allowed: at least 2x2")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def pixel_shape(model: VideoGenerator) -> tuple[int, int, int, int]:
    """(C, F, H, W) of the model's clips."""
    assert model.shape is not None
    if model.codec is None:
        return model.shape  # pyright: ignore[reportReturnType]
    with torch.no_grad():
        like = torch.zeros(1, *model.shape, device=next(model.parameters()).device)
        return tuple(model.codec.decode(like).shape[1:])  # pyright: ignore[reportReturnType]


def own_length(model: VideoGenerator) -> int:
    """Frames of one window."""
    return pixel_shape(model)[1]


def condition(model: VideoGenerator, args: argparse.Namespace, device: torch.device) -> Tensor:
    """What was asked for, or nothing, (1, ...)."""
    if args.classes is not None and model.classes:
        return torch.tensor([class_of(model, args.classes)], device=device)
    if args.text is not None or args.classes is not None:
        return text_of(model, args)[None].to(device)
    return null_condition(model, device)


def zoomed(block: Tensor, zoom: int) -> Tensor:
    """Pixels repeated."""
    return block.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3) if zoom > 1 else block
