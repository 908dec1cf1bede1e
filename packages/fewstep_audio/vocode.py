"""`fewstep vocode IN OUT`: copy synthesis of sound files through their mels, and mels to sound; any length in bounded memory.

A long file passes window by window (`chunks.py`). Windows begin at whole units of the vocoder: a frame, and for PeriodWave the number of samples
after which the columns of all periods repeat. Noise belongs to the frame (`vocoder/frame_noise.py`), so windows see the noise that the whole would.
Copies have the rate, channels and length of their originals; each channel is vocoded by itself.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fewstep.artifacts import load_as
from fewstep.command import UsageError
from fewstep.train.progress import bar
from fewstep_audio.chunks import Chunks
from fewstep_audio.files import AV_SUFFIXES, SUFFIXES, WRITE_SUFFIXES, AudioError
from fewstep_audio.mel_files import MEL_SUFFIXES, read_mel
from fewstep_audio.mels import PRESETS
from fewstep_audio.picture import write_picture
from fewstep_audio.resample import note, resample
from fewstep_audio.streams import AudioWriter, audio_info, read_blocks
from fewstep_audio.vocoder.vocoder import Vocoder

WINDOW, OVERLAP = 10.0, 3.0  # seconds: of a window, and of what neighbours share
PICTURE = 10.0


class Copy:
    """Sound of one rate through a vocoder, in windows.

    Args:
        vocoder: of any rate.
        rate: of the sound, Hz; it is resampled for the vocoder, and back.
        steps, seed: as `Vocoder.forward` has them.
        window, overlap: seconds. The outer quarters of an overlap are computed and not used.
    """

    def __init__(
        self,
        vocoder: Vocoder,
        rate: int,
        steps: int | None = None,
        seed: int = 0,
        window: float = WINDOW,
        overlap: float = OVERLAP,
    ) -> None:
        self.vocoder, self.rate, self.steps, self.seed = vocoder, rate, steps, seed
        own = vocoder.mel.rate
        ratio = own // math.gcd(own, rate)  # rate / gcd samples of the sound are so many of the vocoder's
        self.unit = (rate // math.gcd(own, rate)) * (vocoder.unit // math.gcd(vocoder.unit, ratio))
        units = max(round(overlap * rate / self.unit), 1)
        whole = max(round(window * rate / self.unit), 2 * units)
        self.chunks = Chunks(whole * self.unit, units * self.unit, units * self.unit // 4)

    def __call__(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Blocks (C, n) in, blocks out, in total as many samples."""
        seen, channels = 0, 1

        def counted() -> Iterator[Tensor]:
            nonlocal seen, channels
            for block in blocks:
                channels, seen = len(block), seen + block.shape[1]
                yield block
            yield torch.zeros(channels, -seen % self.unit)  # so that the last window begins at a whole unit, too

        given, held = 0, torch.zeros(0)
        for block in self.chunks(counted(), self.window):
            # One block behind: what was padded is known to be no sound only at the end.
            if held.numel():
                yield held
            given, held = given + block.shape[1], block
        yield held[:, : held.shape[1] - (given - seen)]

    def window(self, wave: Tensor, start: int) -> Tensor:
        """(C, n) that begins at sample `start` -> (C, n)."""
        v = self.vocoder
        inside = resample(wave, self.rate, v.mel.rate)
        inside = pad(inside, (0, -inside.shape[1] % v.unit)).to(next(v.parameters()).device)
        first = start * v.mel.rate // self.rate // v.mel.hop
        copy = v.vocode(v.mel(inside), self.steps, self.seed, first).cpu()
        copy = resample(copy, v.mel.rate, self.rate)
        return pad(copy, (0, max(wave.shape[1] - copy.shape[1], 0)))[:, : wave.shape[1]]


def from_mel(vocoder: Vocoder, mel: Tensor, steps: int | None = None, seed: int = 0) -> Iterator[Tensor]:
    """A mel (bands, T) of any length -> blocks (1, n), in windows of whole frames."""
    hop, unit = vocoder.mel.hop, vocoder.unit // vocoder.mel.hop
    rate = vocoder.mel.rate / hop
    units = max(round(OVERLAP * rate / unit), 1)
    chunks = Chunks(max(round(WINDOW * rate / unit), 2 * units) * unit, units * unit, units * unit // 4)
    device = next(vocoder.parameters()).device
    extra = vocoder.mel.framing == "centre"  # its last frame ends the wave

    def window(part: Tensor, start: int) -> Tensor:
        # A frame of sound for each of the mel, (hop, n).
        part = torch.cat([part, part[:, -1:]], 1) if extra else part
        wave = vocoder.vocode(part[None].to(device), steps, seed, start).cpu()
        return wave.reshape(-1, hop).T

    margin = -mel.shape[1] % unit if mel.shape[1] > chunks.window else 0
    left = hop * (mel.shape[1] - extra)
    for block in chunks([torch.cat([mel, mel[:, -1:].expand(-1, margin)], 1)], window):
        wave = block.T.reshape(1, -1)[:, :left]
        left -= wave.shape[1]
        if wave.shape[1]:
            yield wave


def main(args: argparse.Namespace) -> int:
    """The verb: 0 all done, 1 some files failed (each named on stderr)."""
    jobs = _jobs(Path(args.input), Path(args.output))
    _check(args)
    model = load_as(args.model, Vocoder)
    if args.preset:
        PRESETS[args.preset].check(model.mel, args.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    done, failed = [], []
    with bar() as progress:
        task = progress.add_task("vocoding", total=len(jobs), figures="")
        for file, to in jobs:
            try:
                to.parent.mkdir(parents=True, exist_ok=True)
                done.append(_one(model, file, to, args))
                if said := note(file, done[-1]["rate"], model.mel.rate):
                    sys.stderr.write(f"fewstep vocode: {said}")
            except AudioError as error:
                failed.append({"input": str(file), "error": str(error)})
                sys.stderr.write(f"fewstep vocode: {error}\n")
            progress.update(task, advance=1, figures=file.name)
    if args.json:
        about = {"model": args.model, "steps": args.steps or model.steps, "seed": args.seed}
        preset = {"mel": {"name": model.mel.name, "fingerprint": model.mel.fingerprint}}
        print(json.dumps({**about, **preset, "done": done, "failed": failed}, indent=2))
    else:
        for one in done:
            print(
                f"{one['output']}: {one['seconds']:.2f} s at {one['rate']} Hz, {one['real_time_factor']:.2f} x real time"
            )
    return 1 if failed else 0


@torch.no_grad()
def _one(model: Vocoder, file: Path, to: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write one file; what was done."""
    start = time.perf_counter()
    if file.suffix.lower() in MEL_SUFFIXES:
        rate, channels = model.mel.rate, 1
        blocks = from_mel(model, read_mel(file, model.mel), args.steps, args.seed)
    else:
        rate, channels, _ = audio_info(file)
        blocks = Copy(model, rate, args.steps, args.seed)(read_blocks(file, rate))
    shown, peak = torch.zeros(0), 0.0
    with AudioWriter(to, rate, channels) as writer:
        for block in blocks:
            writer.write(block)
            peak = max(peak, float(block.abs().max()))
            if args.plot:
                shown = torch.cat([shown, block.mean(0)])[: round(PICTURE * rate)]
    if args.plot:
        write_picture(to.with_suffix(".png"), resample(shown, rate, model.mel.rate), model.mel, file.name)
    seconds, spent = writer.samples / rate, time.perf_counter() - start
    return {
        "input": str(file),
        "output": str(to),
        "rate": rate,
        "samples": writer.samples,
        "seconds": round(seconds, 4),
        "real_time_factor": round(spent / seconds, 4),
        "peak": round(peak, 4),
        "clipped": writer.clipped,
    }


def _jobs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """(input, output) files; a folder keeps its file names, what cannot be written under its own becomes .wav."""
    if source.is_dir():
        if target.is_file():
            raise UsageError(f"{target} is a file, but {source} is a folder")
        known = (*SUFFIXES, *AV_SUFFIXES, *MEL_SUFFIXES)
        files = [p for p in sorted(source.iterdir()) if p.suffix.lower() in known and p.is_file()]
        if not files:
            raise AudioError(f"{source}: no sound and no mels in it; allowed: at least one of {' '.join(known)}")
        jobs = [(p, target / p.with_suffix(_suffix(p)).name) for p in files]
        names = [to for _, to in jobs]
        twice = next((to for to in names if names.count(to) > 1), None)
        if twice is not None:
            raise UsageError(f"two files of {source} would become {twice}: rename one")
    elif not source.exists():
        raise UsageError(f"{source} does not exist")
    else:
        jobs = [(source, target / source.with_suffix(_suffix(source)).name if target.is_dir() else target)]
    same = next((file for file, to in jobs if file.resolve() == to.resolve()), None)
    if same is not None:
        raise UsageError(f"{same} would be written over: give another OUT")
    return jobs


def _suffix(path: Path) -> str:
    return path.suffix if path.suffix.lower() in WRITE_SUFFIXES else ".wav"


def _check(args: argparse.Namespace) -> None:
    if args.steps is not None and args.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {args.steps}")
    if args.seed < 0:
        raise UsageError(f"--seed is 0 or more, not {args.seed}")
    if args.preset and args.preset not in PRESETS:
        raise UsageError(f"--preset is one of {', '.join(PRESETS)}, not {args.preset}")
