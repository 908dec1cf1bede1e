"""`fewstep video stream OUT`: frames as they are ready, from noise or over another video.

    from noise         a causal model, block after block
    over a video       a causal model that follows it (follow.py); another one with its clips in flight (batch.py)

Memory does not grow with the length. Ctrl-C ends a stream in good order: a file holds what was written.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.command import UsageError
from fewstep.guidance.similarity import SimilarityFilter
from fewstep.solvers import GammaSampling
from fewstep.train.progress import bar
from fewstep.whole_file import whole
from fewstep_video.causal_video import CausalVideo
from fewstep_video.files import read_frames, video_info
from fewstep_video.generate import class_of, loaded, text_of
from fewstep_video.stream.batch import StreamBatch
from fewstep_video.stream.follow import Follow
from fewstep_video.stream.guidance import Full, OnetimeResidual, SelfResidual, StreamGuidance, Unguided
from fewstep_video.stream.noise_controller import NoiseController
from fewstep_video.stream.report import StreamReport
from fewstep_video.stream.sinks import Sink, sink
from fewstep_video.stream.skipping import Skipping, Stage
from fewstep_video.stream.sources import blocks, fitted, raw_frames
from fewstep_video.video_generator import VideoGenerator


class Made(NamedTuple):
    """Frames (C, n, H, W) in [-1, 1], and when what they needed was there; None where they needed nothing."""

    frames: Tensor
    since: float | None


def main(args: argparse.Namespace) -> int:
    """The subcommand."""
    check(args)
    model = loaded(args.model)
    if model.codec is not None:
        raise UsageError(f"{args.model} makes latents, whose codec needs whole clips; streams are of pixels")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    value = condition(model, args)[None].to(device)
    rate = args.fps or (video_info(args.input).fps if args.input not in (None, "-") else 0) or model.fps
    about = {"model": args.model, "seed": args.seed, "steps": args.steps or model.steps}
    report = StreamReport(rate, time.perf_counter())
    frames = made(model, value, args, report)
    with sink(args.output, rate, about) as to:
        try:
            write_all(frames, to, report, args)
        except KeyboardInterrupt:
            if not report.frames:
                raise
        except BrokenPipeError:  # the reader has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    tell(about | report.summary(), args)
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise where the arguments cannot be met, before a model is loaded."""
    for name, least in (("frames", 1), ("steps", 1), ("zoom", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} is at least {least}, not {value}")
    if not 0 < args.noise <= 1:
        raise UsageError(f"--noise is above 0 and at most 1, not {args.noise}")
    if args.similar is not None and not -1 <= args.similar < 1:
        raise UsageError(f"--similar is a cosine in [-1, 1), not {args.similar}")
    if args.input not in (None, "-") and Path(args.input).resolve() == Path(args.output).resolve():
        raise UsageError(f"{args.input} would be written over: give another OUT")
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise UsageError(f"--fps is above 0 and at most 1000, not {args.fps}")
    if (args.input == "-") != (args.size is not None):
        raise UsageError("--size WxH belongs to --input -, the raw frames on stdin, and they need it")
    if args.report and not Path(args.report).parent.is_dir():
        raise UsageError(f"{args.report}: folder {Path(args.report).parent} does not exist")
    if args.size:
        size_of(args.size)
    if args.input is None:
        given = {"adaptive": args.adaptive, "similar": args.similar is not None, "guidance": args.guidance != "none"}
        if any(given.values()):
            raise UsageError(
                f"--{next(k for k, v in given.items() if v)} is for streams over another video: give --input"
            )


def size_of(text: str) -> tuple[int, int]:
    """(width, height) of WxH."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= 2):
        raise UsageError(f"--size is WxH of at least 2x2, such as 64x48, not {text}")
    return int(width), int(height)


def condition(model: VideoGenerator, args: argparse.Namespace) -> Tensor:
    """The stream's label or text."""
    if model.condition.name == "text":
        return text_of(model, args)
    if args.text:
        raise UsageError(f"--text is for models of texts; {args.model} is of classes")
    return torch.tensor(0 if args.classes is None else class_of(model, args.classes))


def made(model: VideoGenerator, value: Tensor, args: argparse.Namespace, report: StreamReport) -> Iterator[Made]:
    """What is to be written."""
    if args.input is not None:
        return over(model, stage_of(model, value, args), args, report)
    if not isinstance(model, CausalVideo):
        raise UsageError(f"{args.model} makes whole clips; a stream from noise needs a causal model, or give --input")
    return alone(model, value, args)


def alone(model: CausalVideo, value: Tensor, args: argparse.Namespace) -> Iterator[Made]:
    """The stream from noise."""
    left = args.frames
    for block in model.stream(value, args.seed, args.steps):
        frames = model.decoded(block)[0, :, :left]
        yield Made(frames, None)
        if left is not None and (left := left - frames.shape[1]) <= 0:
            return


def over(model: VideoGenerator, stage: Stage, args: argparse.Namespace, report: StreamReport) -> Iterator[Made]:
    """The stream over another video."""
    assert model.shape is not None
    channels, size, height, width = model.shape
    size = model.size if isinstance(model, CausalVideo) else size
    source = raw_frames(sys.stdin.buffer, *size_of(args.size)) if args.input == "-" else read_frames(args.input)
    frames = (fitted(frame, channels, height, width) for frame in source)
    waiting, like = [], next(model.parameters())
    for block in blocks(frames, size, args.frames):
        waiting.append((block.count, time.perf_counter()))
        out = stage(block.frames.to(like))
        report.skipped = getattr(stage, "skipped", 0) * size
        if out is not None:
            yield _out(model, out, *waiting.pop(0))
    for out in stage.drain():
        yield _out(model, out, *waiting.pop(0))


def _out(model: VideoGenerator, block: Tensor, kept: int, since: float) -> Made:
    return Made(model.decoded(block)[0, :, :kept], since)


def stage_of(model: VideoGenerator, value: Tensor, args: argparse.Namespace) -> Stage:
    """What makes blocks of blocks."""
    if isinstance(model, CausalVideo):
        if args.guidance != "none":
            raise UsageError(f"--guidance is for models that are not causal, and {args.model} is")
        level = NoiseController(args.noise, min(0.1, args.noise / 2)) if args.adaptive else args.noise
        stage: Stage = Follow(model, value, level, args.steps, args.seed)
    elif args.adaptive:
        raise UsageError(
            f"--adaptive is for causal models, and {args.model} is none: its clips in flight share their times"
        )
    else:
        stage = Clips(model, value, args)
    if args.similar is None:
        return stage
    return Skipping(stage, SimilarityFilter(args.similar, generator=torch.Generator().manual_seed(args.seed)))


class Clips:
    """`StreamBatch` with the stream's condition."""

    def __init__(self, model: VideoGenerator, value: Tensor, args: argparse.Namespace) -> None:
        path, kinds = model.denoiser.path, {"none": Unguided(), "full": Full(args.cfg)}
        kinds |= {"self": SelfResidual(args.cfg), "onetime": OnetimeResidual(args.cfg)}
        guidance: StreamGuidance = kinds[args.guidance]
        first = path.t_min + args.noise * (path.t_max - path.t_min)
        own = model.grid(path, args.steps or model.steps)
        times = [first, *own[own < first - 0.01 * (path.t_max - path.t_min)].tolist()]
        solver = model.solver if model.solver.order == 1 else GammaSampling(1.0)
        self.batch = StreamBatch(model.denoiser, times, solver, guidance, args.seed)
        self.cond = {model.condition.name: value}
        self.without = model.unconditional(self.cond)

    def __call__(self, block: Tensor) -> Tensor | None:
        """(1, C, F, H, W) -> the clip that is ready, if any."""
        return self.batch(block, self.cond, self.without)

    def drain(self) -> list[Tensor]:
        """Those still in flight."""
        return self.batch.drain()


def write_all(frames: Iterator[Made], to: Sink, report: StreamReport, args: argparse.Namespace) -> None:
    """Write everything, with a bar on stderr."""
    with bar() as progress:
        task = progress.add_task("frames", total=args.frames, figures="")
        for one in frames:
            clip = one.frames.cpu()
            if args.zoom > 1:
                clip = clip.repeat_interleave(args.zoom, 2).repeat_interleave(args.zoom, 3)
            to.write(clip)
            report.wrote(clip.shape[1], time.perf_counter(), one.since)
            progress.update(
                task, advance=clip.shape[1], figures=f"{report.frames / (report.last - report.begin):.1f} fps"
            )


def tell(found: dict[str, Any], args: argparse.Namespace) -> None:
    """The report: to its file, and as JSON or one line beside the frames."""
    if args.report:
        with whole(args.report) as part:
            part.write_text(json.dumps(found, indent=2))
    line = (
        f"{args.output}: {found['frames']} frames at {found['fps']:.1f} per second, jitter {found['jitter_ms']:.1f} ms, "
        f"{found['deadline']['missed']} of them late for {found['deadline']['fps']:g} per second"
    )
    print(json.dumps(found, indent=2) if args.json else line, file=sys.stderr if args.output == "-" else sys.stdout)
