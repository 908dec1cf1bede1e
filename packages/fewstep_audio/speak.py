"""`fewstep speak TEXT OUT`: text of any length to one sound file, piece by piece.

A text is normalised, split into pieces of the model's length, and spoken in batches of similar length; the pieces stand in the file in
order. Each begins and ends in half a pause, which is part of its mel, so that the vocoder makes the room's noise of it. Piece i draws its
noise from (seed, i) alone. Memory holds `AHEAD` pieces, whatever the length of the text.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fewstep.artifacts import load_as
from fewstep.command import UsageError
from fewstep.train.progress import bar
from fewstep_audio.commands_speak import GRIFFIN_LIM
from fewstep_audio.commands_vocode import DEFAULT_MODEL as DEFAULT_VOCODER
from fewstep_audio.griffin_lim import GriffinLim
from fewstep_audio.item_noise import item_generator
from fewstep_audio.mels import Mel
from fewstep_audio.picture import write_picture
from fewstep_audio.streams import AudioWriter
from fewstep_audio.text import TextError, pieces
from fewstep_audio.tts.text_to_speech import TextToSpeech
from fewstep_audio.vocoder.vocoder import Vocoder as NetworkVocoder

BATCH, AHEAD = 8, 64
PAUSE = 0.3  # seconds between pieces
FALL = 3  # frames from speech to the pause
PICTURE = 10.0


class Vocoder(Protocol):
    """mel (B, bands, T) -> wave (B, N)."""

    @property
    def mel(self) -> Mel: ...

    def vocode(self, mel: Tensor) -> Tensor: ...


class Piece(NamedTuple):
    """A piece of the text as it was spoken: mel (bands, T) and wave (N,), both with half a pause at either end."""

    text: str
    mel: Tensor
    wave: Tensor


def split(model: TextToSpeech, text: str) -> list[str]:
    """The pieces of a text, each as it is read.

    Raises:
        TextError: nothing to say, or symbols that the model does not know.
    """
    parts = pieces(model.symbols.normalise(text), model.longest)
    model.symbols.check(parts)
    if not parts:
        raise TextError("the text is empty: there is nothing to say")
    return parts


@torch.no_grad()
def speak(
    model: TextToSpeech,
    vocoder: Vocoder,
    parts: Sequence[str],
    seed: int = 0,
    speaker: str | None = None,
    speed: float = 1.0,
    steps: int | None = None,
    batch: int = BATCH,
) -> Iterator[Piece]:
    """The pieces in order, `AHEAD` at a time in batches of similar length.

    Raises:
        AudioError: a vocoder of another mel.
        TextError: an unknown speaker.
    """
    model.mel.check(vocoder.mel, "speak")
    who, half = model.speaker_number(speaker), half_pause(model.mel)
    for first in range(0, len(parts), AHEAD):
        ids = {first + i: model.symbols.ids(p) for i, p in enumerate(parts[first : first + AHEAD])}
        order = sorted(ids, key=lambda i: len(ids[i]))
        mels: dict[int, Tensor] = {}
        for chosen in (order[k : k + batch] for k in range(0, len(order), batch)):
            generators = [item_generator(seed, i) for i in chosen]
            said = model([ids[i] for i in chosen], generators, who, speed, steps)
            mels |= {i: rested(said.mel[n, :, : said.frames[n]], half) for n, i in enumerate(chosen)}
        for i in sorted(mels):
            # One by one: a phase or a convolution at the end of a padded mel would see the padding.
            yield Piece(parts[i], mels[i], vocoder.vocode(mels[i][None])[0])


def half_pause(mel: Mel) -> int:
    """Frames of half a pause."""
    return max(1, round(PAUSE / 2 * mel.rate / mel.hop))


def rested(mel: Tensor, frames: int) -> Tensor:
    """A mel (bands, T) of logarithms with so many frames more at both ends, which fall to the least it has and stay there.

    Not to the least of each band: within a short word that is still its voice, and would hum on until the next piece.
    """
    quiet = mel.amin().expand(len(mel), 1)
    share = ((torch.arange(frames) + 1) / (FALL + 1)).clamp(max=1).to(mel)
    after = mel[:, -1:].lerp(quiet, share)
    before = mel[:, :1].lerp(quiet, share.flip(0))
    return torch.cat([before, mel, after], 1)


def chosen(name: str | None, mel: Mel, device: torch.device | str = "cpu") -> tuple[str, Vocoder]:
    """(name, vocoder): that of an artifact, Griffin-Lim by its name, or unless given the package's own where its mel is this one, else Griffin-Lim.

    Raises:
        ArtifactError: no artifact of that name, or one that holds no vocoder.
    """
    if name is None:
        own = load_as(DEFAULT_VOCODER, NetworkVocoder)
        if own.mel.fingerprint == mel.fingerprint:
            return Path(DEFAULT_VOCODER).name, own.to(device)
    if name is None or name == GRIFFIN_LIM:
        return GRIFFIN_LIM, GriffinLim(mel)
    return name, load_as(name, NetworkVocoder).to(device)


def main(args: argparse.Namespace) -> int:
    """The verb."""
    _check(args)
    text = _text(args)
    if not text.strip():
        raise TextError("the text is empty: there is nothing to say")
    model = load_as(args.model, TextToSpeech)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    device = next(model.parameters()).device
    name, vocoder = chosen(args.vocoder, model.mel, device)
    start, parts = time.perf_counter(), split(model, text)
    rate, peak, shown = model.mel.rate, 0.0, torch.zeros(0)
    said = speak(model, vocoder, parts, args.seed, args.speaker, args.speed, args.steps)
    with AudioWriter(args.output, rate, 1) as writer, bar() as progress:
        task = progress.add_task("speaking", total=len(parts), figures="")
        for piece in said:
            wave = piece.wave.cpu()
            writer.write(wave[None])
            shown, peak = torch.cat([shown, wave])[: round(PICTURE * rate)], max(peak, wave.abs().max().item())
            progress.update(task, advance=1)
    if args.plot:
        write_picture(args.plot, shown, model.mel)
    seconds, spent = writer.samples / rate, time.perf_counter() - start
    report = {
        "model": args.model,
        "output": str(args.output),
        "steps": args.steps or model.steps,
        "seed": args.seed,
        "speaker": args.speaker or (model.speakers[0] if model.speakers else None),
        "mel": {"name": model.mel.name, "fingerprint": model.mel.fingerprint},
        "vocoder": name,
        "pieces": len(parts),
        "seconds": round(seconds, 3),
        "real_time_factor": round(spent / seconds, 4),
        "peak": round(peak, 4),
        "clipped": writer.clipped,
    }
    print(json.dumps(report, indent=2) if args.json else _line(report))
    return 0


def _line(report: dict[str, Any]) -> str:
    return f"{report['output']}: {report['seconds']:.2f} s of speech in {report['pieces']} pieces, real-time factor {report['real_time_factor']:.2f}"


def _check(args: argparse.Namespace) -> None:
    if args.steps is not None and args.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {args.steps}")
    if not 0.1 <= args.speed <= 10:
        raise UsageError(f"--speed is a factor from 0.1 to 10, not {args.speed}")
    if args.seed < 0:
        raise UsageError(f"--seed is 0 or more, not {args.seed}")
    if args.plot and Path(args.plot).suffix.lower() != ".png":
        raise UsageError(f"--plot writes a .png file, not {args.plot}")
    if args.plot and not Path(args.plot).parent.is_dir():
        raise UsageError(f"--plot {args.plot}: folder {Path(args.plot).parent} does not exist")


def _text(args: argparse.Namespace) -> str:
    if args.text == "-":
        return sys.stdin.read()
    if not args.file:
        return args.text
    try:
        return Path(args.text).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise TextError(f"{args.text} is not a text file in UTF-8: {' '.join(str(err).split())}") from err
