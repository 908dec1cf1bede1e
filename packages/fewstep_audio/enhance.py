"""`fewstep enhance IN OUT`: take the noise out of a sound file or a folder of them, of any length, rate and number of channels.

Files pass at the model's rate in overlapping parts (chunks.py), and are brought back to their own; the level of all parts is that of the whole
channel, so that they fit together. Channels are enhanced one by one with the same noise. As many samples come out as went in.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.artifacts import ArtifactError, load_as
from fewstep.command import UsageError
from fewstep.train.progress import bar
from fewstep_audio.chunks import Chunks
from fewstep_audio.commands_enhance import MODES
from fewstep_audio.enhancement.enhancer import Enhancer
from fewstep_audio.files import WRITE_SUFFIXES, Audio, AudioError, list_audio
from fewstep_audio.picture import write_spectrograms
from fewstep_audio.resample import note, resample_blocks
from fewstep_audio.streams import AudioWriter, audio_info, read_blocks

WEIGHTS = Path(__file__).with_name("weights")
# Seconds of the beginning that a picture shows.
SHOWN = 30


@torch.no_grad()
def enhanced(
    model: Enhancer,
    blocks: Iterator[Tensor],
    rate: int,
    level: Tensor,
    seed: int = 0,
    steps: int | None = None,
    chunk: float = 4.0,
) -> Iterator[Tensor]:
    """Blocks (C, n) at `rate` in, enhanced blocks out; in total as many samples, or a few more where rates do not divide.

    Args:
        level: (C, 1), the peak of each whole channel, 1 for silent ones.
        chunk: seconds; an eighth of it overlaps, and a quarter of that is not used at either edge.
    """
    device = next(model.parameters()).device

    def part(wave: Tensor, start: int) -> Tensor:
        # Position in place of an index: a part has the same noise whatever else is enhanced; channels share it, which keeps the stereo image.
        items = [start] * len(wave)
        return model(wave.to(device), seed, items, level=level.to(device), steps=steps).cpu()

    window = math.ceil(chunk * model.rate)
    parts = Chunks(window, window // 8, window // 32)
    yield from resample_blocks(parts(resample_blocks(blocks, rate, model.rate), part), model.rate, rate)


def enhance_file(
    model: Enhancer,
    source: Path,
    target: Path,
    seed: int = 0,
    steps: int | None = None,
    chunk: float = 4.0,
    plot: bool = False,
) -> dict[str, Any]:
    """Enhance one file; returns what was done.

    Raises:
        AudioError: an input that cannot be read or an output that cannot be written; nothing is then left of the output.
    """
    begun, info = time.perf_counter(), audio_info(source)
    if target.suffix.lower() not in WRITE_SUFFIXES:
        raise AudioError(
            f"{target}: cannot write {target.suffix or 'no extension'}; allowed: {' '.join(WRITE_SUFFIXES)}"
        )
    level, samples = torch.zeros(info.channels, 1), 0
    for block in read_blocks(source, info.rate):  # also finds what cannot be read before anything is written
        level, samples = torch.maximum(level, block.abs().amax(1, keepdim=True)), samples + block.shape[1]
    level = torch.where(level > 0, level, 1.0)
    target.parent.mkdir(parents=True, exist_ok=True)
    with AudioWriter(target, info.rate, info.channels) as writer:
        for block in enhanced(model, read_blocks(source, info.rate), info.rate, level, seed, steps, chunk):
            writer.write(block[:, : samples - writer.samples])
    if plot:
        shown = {"input": source, "output": target}
        sounds = {name: _beginning(file, info.rate) for name, file in shown.items()}
        write_spectrograms(target.with_suffix(".png"), sounds)
    spent = time.perf_counter() - begun
    return {
        "input": str(source),
        "output": str(target),
        "rate": info.rate,
        "channels": info.channels,
        "samples": samples,
        "clipped": writer.clipped,
        "seconds": spent,
        "real_time_factor": spent * info.rate / samples,
    }


def _beginning(file: Path, rate: int) -> Audio:
    return Audio(next(read_blocks(file, SHOWN * rate)), rate)


def main(args: argparse.Namespace) -> int:
    """The verb: 0 all done, 1 some files failed (each named on stderr)."""
    source, target = Path(args.input), Path(args.output)
    if args.steps is not None and args.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {args.steps}")
    if args.seed < 0:
        raise UsageError(f"--seed must be at least 0, not {args.seed}")
    if not 0.1 <= args.chunk < math.inf:
        raise UsageError(f"--chunk must be at least 0.1 seconds, not {args.chunk}")
    jobs = _jobs(source, target, args.recursive)
    same = next((file for file, to in jobs if file.resolve() == to.resolve()), None)
    if same is not None:
        raise UsageError(f"{same} would be written over: give another OUT")
    model = _model(args.model, args.mode)
    evaluations = model.evaluations(args.steps)
    done, failed = [], []
    with bar() as progress:
        task = progress.add_task("enhancing", total=len(jobs), figures="")
        for file, to in jobs:
            try:
                done.append(enhance_file(model, file, to, args.seed, args.steps, args.chunk, args.plot))
                if said := note(file, done[-1]["rate"], model.rate):
                    sys.stderr.write(f"fewstep enhance: {said}")
            except AudioError as err:
                failed.append({"input": str(file), "error": str(err)})
                sys.stderr.write(f"fewstep enhance: {err}\n")
            progress.update(task, advance=1, figures=file.name)
    if args.json:
        facts = {
            "model": args.model or args.mode,
            "steps": args.steps or model.steps,
            "evaluations": evaluations,
            "seed": args.seed,
        }
        print(json.dumps({**facts, "rate": model.rate, "done": done, "failed": failed}, indent=2))
    return 1 if failed else 0


def _model(source: str | None, mode: str) -> Enhancer:
    """The enhancer of an artifact, or the one that comes with the package for this mode.

    Raises:
        ArtifactError: none there, or not an enhancer.
    """
    if source is None:
        folder = WEIGHTS / MODES[mode]
        if not folder.is_dir():
            raise ArtifactError(
                f"no model comes with --mode {mode}: train the recipe audio/{MODES[mode]} and name its artifact by --model"
            )
        source = str(folder)
    return load_as(source, Enhancer).to("cuda" if torch.cuda.is_available() else "cpu")


def _jobs(source: Path, target: Path, recursive: bool) -> list[tuple[Path, Path]]:
    """(input, output) files; a folder keeps its structure and names, with .wav added to those of formats that cannot be written."""
    if source.is_dir():
        if target.is_file():
            raise UsageError(f"{target} is a file, but {source} is a folder")
        inside = [(file, file.relative_to(source)) for file in list_audio(source, recursive)]
        return [(file, target / _writable(name)) for file, name in inside]
    if not source.exists():
        raise UsageError(f"{source} does not exist")
    return [(source, target / _writable(Path(source.name)) if target.is_dir() else target)]


def _writable(name: Path) -> Path:
    return name if name.suffix.lower() in WRITE_SUFFIXES else name.with_name(f"{name.name}.wav")
