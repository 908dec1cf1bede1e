"""`fewstep video generate OUT`: clips of a few-step model as videos, previews or contact sheets."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.artifacts import load_as
from fewstep.command import UsageError
from fewstep.train.progress import bar
from fewstep_video.files import WRITE_SUFFIXES, write_video
from fewstep_video.nets.conditions import Texts
from fewstep_video.preview import PREVIEW_SUFFIXES, write_picture, write_preview
from fewstep_video.sheet import contact_sheet
from fewstep_video.texts import stored_text
from fewstep_video.video_generator import VideoGenerator

# Clips that are sampled at once.
BATCH = 8


def main(args: argparse.Namespace) -> int:
    """The subcommand; every file appears whole or not at all."""
    out = Path(args.output)
    check(args, out)
    model = loaded(args.model)
    values = asked(model, args)
    names = [_named(model, v) for v in values]
    files = [out] if args.count == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(args.count)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    fps, kept, start = args.fps or model.fps, [], time.perf_counter()
    with bar() as progress, torch.no_grad():
        task = progress.add_task("clips", total=args.count, figures="")
        for first in range(0, args.count, BATCH):
            numbers = range(first, min(first + BATCH, args.count))
            value = torch.stack([values[i] for i in numbers]).to(device)
            clips = model(value, args.frames, args.seed, args.steps, cfg=args.cfg, clips=numbers).cpu()
            for i, clip in zip(numbers, clips, strict=True):
                about = {"model": args.model, "condition": names[i], "seed": args.seed, "clip": i}
                write_clip(files[i], clip, fps, args.zoom, about | {"steps": args.steps or model.steps})
                kept += [clip] if args.sheet else []
                progress.update(task, advance=1, figures=files[i].name)
    if args.sheet:
        write_picture(args.sheet, contact_sheet(torch.stack(kept)))
    _report(args, model, files, names, time.perf_counter() - start)
    return 0


def write_clip(file: Path, clip: Tensor, fps: float, zoom: int = 1, about: dict[str, Any] | None = None) -> None:
    """A clip (C, F, H, W) by the kind of the file."""
    clip = clip.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3) if zoom > 1 else clip
    if file.suffix.lower() in PREVIEW_SUFFIXES:
        write_preview(file, clip, fps)
    elif file.suffix.lower() == ".png":
        write_picture(file, contact_sheet(clip[None]))
    else:
        write_video(file, clip, fps, about=about)


def check(args: argparse.Namespace, out: Path) -> None:
    """Raise where the arguments cannot be met, before a model is loaded."""
    allowed = (*WRITE_SUFFIXES, *PREVIEW_SUFFIXES, ".png")
    if out.suffix.lower() not in allowed:
        raise UsageError(f"{out}: cannot write {out.suffix or 'no extension'}; allowed: {' '.join(allowed)}")
    sheet = getattr(args, "sheet", None)
    for file in (out, *([Path(sheet)] if sheet else [])):
        if not file.parent.is_dir():
            raise UsageError(f"{file}: folder {file.parent} does not exist")
    for name, least in (("count", 1), ("frames", 1), ("steps", 1), ("zoom", 1), ("seed", 0)):
        value = getattr(args, name, None)
        if value is not None and value < least:
            raise UsageError(f"--{name} is at least {least}, not {value}")
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise UsageError(f"--fps is above 0 and at most 1000, not {args.fps}")


def loaded(source: str) -> VideoGenerator:
    """The model of an artifact folder or hub id."""
    return load_as(source, VideoGenerator)


def asked(model: VideoGenerator, args: argparse.Namespace) -> list[Tensor]:
    """The condition of each clip."""
    if model.condition.name == "text":
        return [text_of(model, args)] * args.count
    if args.text:
        raise UsageError(f"--text is for models of texts; {args.model} knows {_known(model)}")
    if args.classes is None:
        return [torch.tensor(i % model.classes) for i in range(args.count)]
    return [torch.tensor(class_of(model, args.classes))] * args.count


def class_of(model: VideoGenerator, name: str) -> int:
    """The label of a class by its name or number."""
    if name in model.names:
        return model.names.index(name)
    if name.isdecimal() and int(name) < model.classes:
        return int(name)
    raise UsageError(f"--class {name}: the model knows {_known(model)}")


def text_of(model: VideoGenerator, args: argparse.Namespace) -> Tensor:
    """The embeddings (L, D) of --text: those in the file, or of the words where the model knows how."""
    condition = model.condition
    assert isinstance(condition, Texts)
    if args.classes is not None or args.text is None:
        raise UsageError(f"{args.model} is conditioned on texts: give one with --text")
    if Path(args.text).suffix == ".safetensors":
        text = stored_text(args.text)
    elif condition.words is not None:
        text = condition.words(args.text)
    else:
        raise UsageError(f"{args.model} has no text encoder: give embeddings with --text FILE.safetensors")
    if tuple(text.shape) != (condition.length, condition.dim):
        raise UsageError(f"{args.text}: `text` is {tuple(text.shape)}; allowed: {(condition.length, condition.dim)}")
    return text


def _known(model: VideoGenerator) -> str:
    return ", ".join(model.names) if model.names else f"the classes 0 to {model.classes - 1}"


def _named(model: VideoGenerator, value: Tensor) -> str:
    if value.ndim:
        return "text"
    return model.names[int(value)] if model.names else str(int(value))


def _report(
    args: argparse.Namespace, model: VideoGenerator, files: Sequence[Path], names: Sequence[str], seconds: float
) -> None:
    done = [{"output": str(f), "condition": n, "clip": i} for i, (f, n) in enumerate(zip(files, names, strict=True))]
    about = {"model": args.model, "steps": args.steps or model.steps, "seed": args.seed, "cfg": args.cfg}
    if args.json:
        print(json.dumps({**about, "seconds": round(seconds, 3), "done": done, "sheet": args.sheet}, indent=2))
        return
    for one in done:
        print(f"{one['output']}: {one['condition']}, {about['steps']} steps")
