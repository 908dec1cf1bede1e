"""`python -m fewstep_audio.bench.lengths`: long inputs through `enhance` and `speak`: is memory flat, do the joins show?

Memory: the largest resident size of the verb in a process of its own, for one and for ten minutes of noisy speech, for 200 and for 2000 characters.

Joins: frames of 32 ms within the cross-fades of `enhance` against those inside; of `speak`, whose pieces meet in the middle of a pause, frames
over the point where they meet against the other frames of the pauses, and all frames of the pauses against the speech. Figures

    energy   10 log10 mean square            flux   mean rise of the log magnitudes since the frame before

and of `enhance` its gain, energy out minus energy in. `auc`: the chance that a frame at a join exceeds one inside, .5 where nobody can tell;
`error`: its standard error there. `extreme`: the share of frames at joins above the 99th percentile of those inside, .01 where nobody can tell.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import fewstep
from fewstep.bench.timing import machine, write
from fewstep_audio.bench.enhancement import RATE
from fewstep_audio.commands_enhance import DEFAULT, MODES
from fewstep_audio.commands_speak import DEFAULT_MODEL
from fewstep_audio.data.degradation import AddedNoise
from fewstep_audio.data.fsdd import WORDS, SpokenDigits
from fewstep_audio.data.recordings import Recordings
from fewstep_audio.enhance import WEIGHTS
from fewstep_audio.files import Audio, read_audio, write_audio
from fewstep_audio.griffin_lim import GriffinLim
from fewstep_audio.speak import FALL, half_pause, speak, split
from fewstep_audio.tts.text_to_speech import TextToSpeech

FRAME, HOP = 256, 128
# Of `enhance`: seconds.
CHUNK = 4.0


def noisy_speech(folder: str, seconds: float, seed: int = 0) -> Tensor:
    """(N,) at 8 kHz: held-out takes one after the other, with noise at 5 dB."""
    takes, g = Recordings(SpokenDigits(folder).division()[1], RATE), torch.Generator().manual_seed(seed)
    parts: list[Tensor] = []
    while sum(map(len, parts)) < seconds * RATE:
        parts.append(takes[int(torch.randint(len(takes), (), generator=g))].wave)
    return AddedNoise(5.0, 5.0)(torch.cat(parts)[: round(seconds * RATE)], takes, 0, g)


def text(characters: int, seed: int = 0) -> str:
    """So many characters of spoken digits, or a few less."""
    g, words = torch.Generator().manual_seed(seed), ""
    while len(words) < characters - 7:
        words += f"{WORDS[int(torch.randint(10, (), generator=g))]}, "
    return words


def resident(*arguments: str) -> float:
    """MB that the verb's process held at most."""
    code = "import sys; from fewstep.cli import main; sys.exit(main(sys.argv[1:]))"
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"`fewstep {' '.join(arguments)}` ended with {child.returncode}")
    return usage.ru_maxrss / 1024


def frame_figures(wave: Tensor) -> dict[str, Tensor]:
    """(N,) -> energy and flux of its frames, (n,) each; frame i begins at sample i HOP."""
    frames = wave.double().unfold(0, FRAME, HOP)
    logs = torch.fft.rfft(frames * torch.hann_window(FRAME, dtype=torch.float64)).abs().clamp_min(1e-4).log()
    rise = torch.diff(logs, dim=0, prepend=logs[:1]).clamp_min(0)
    return {"energy": 10 * frames.square().mean(1).clamp_min(1e-10).log10(), "flux": rise.mean(1)}


def touching(spans: Sequence[tuple[int, int]], frames: int) -> Tensor:
    """(frames,) which frames overlap one of the spans [begin, end) of samples."""
    begin = torch.arange(frames) * HOP
    hit = torch.zeros(frames, dtype=torch.bool)
    for a, b in spans:
        hit |= (begin < b) & (begin + FRAME > a)
    return hit


def compared(at: Tensor, inside: Tensor) -> dict[str, float]:
    """Values of frames at joins, (m,), against those inside, (n,)."""
    order, (m, n) = inside.sort().values, (len(at), len(inside))
    below = torch.searchsorted(order, at).double()
    equal = torch.searchsorted(order, at, right=True).double() - below
    return {
        "auc": ((below + equal / 2).mean() / n).item(),
        "error": ((m + n + 1) / (12 * m * n)) ** 0.5,
        "extreme": (at > inside.quantile(0.99)).double().mean().item(),
    }


def joins_of_enhance(noisy: Path, enhanced: Path) -> dict[str, Any]:
    """Where windows of CHUNK seconds fade into each other (enhance.py, chunks.py)."""
    before, after = (read_audio(f).mono() for f in (noisy, enhanced))
    window = round(CHUNK * RATE)
    overlap, context = window // 8, window // 32
    starts = range(window - overlap, len(after) - window, window - overlap)
    figures = frame_figures(after)
    figures["gain"] = figures["energy"] - frame_figures(before)["energy"]
    hit = touching([(s + context, s + overlap - context) for s in starts], len(figures["energy"]))
    return {"joins": len(starts)} | {k: compared(v[hit], v[~hit]) for k, v in figures.items()}


def joins_of_speak(model: TextToSpeech, words: str) -> dict[str, Any]:
    """Where the pieces meet; `pauses`: the whole pauses against the speech, which are quieter and should hold no clicks."""
    front = model.mel
    waves = [p.wave for p in speak(model, GriffinLim(front), split(model, words))]
    ends = torch.tensor([len(w) for w in waves]).cumsum(0)[:-1].tolist()
    figures = frame_figures(torch.cat(waves))
    size, half = len(figures["energy"]), half_pause(front) * front.hop
    pauses = touching([(e - half, e + half) for e in ends], size)
    # The windows of the front end and of these frames reach into what falls and rises.
    flat = half - FALL * front.hop - front.win
    met, calm = touching([(e - 1, e + 1) for e in ends], size), touching([(e - flat, e + flat) for e in ends], size)
    return {"joins": len(ends), **{k: compared(v[met], v[calm & ~met]) for k, v in figures.items()}} | {
        "pauses": {k: compared(v[pauses], v[~pauses]) for k, v in figures.items()}
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Both verbs, with the models that come with the package unless others are named."""
    parser = argparse.ArgumentParser(prog="python -m fewstep_audio.bench.lengths", description=__doc__)
    parser.add_argument("--digits", required=True, metavar="DIR", help="recordings of the Free Spoken Digit Dataset")
    parser.add_argument("--enhancer", default=str(WEIGHTS / MODES[DEFAULT]), metavar="DIR")
    parser.add_argument("--speaker", default=DEFAULT_MODEL, metavar="DIR")
    parser.add_argument("--minutes", type=float, nargs=2, default=(1.0, 10.0), help="of noisy speech (default 1 10)")
    parser.add_argument("--characters", type=int, nargs=2, default=(200, 2000), help="of text (default 200 2000)")
    parser.add_argument("--out", metavar="FILE")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        noisy, enhanced, said = (Path(place) / f"{name}.wav" for name in ("noisy", "enhanced", "said"))
        heard, spoken = {}, {}
        for minutes in args.minutes:
            write_audio(noisy, Audio(noisy_speech(args.digits, 60 * minutes)[None], RATE))
            heard[minutes] = resident("enhance", str(noisy), str(enhanced), "--model", args.enhancer)
        for characters in args.characters:
            spoken[characters] = resident("speak", text(characters), str(said), "--model", args.speaker)
        found = {
            "enhance": {"megabytes_by_minutes": heard, **joins_of_enhance(noisy, enhanced)},
            "speak": {
                "megabytes_by_characters": spoken,
                **joins_of_speak(cast(TextToSpeech, fewstep.load(args.speaker)), text(args.characters[-1])),
            },
        }
    write({"bench": "lengths", **machine(), "enhancer": args.enhancer, "speaker": args.speaker, **found}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
