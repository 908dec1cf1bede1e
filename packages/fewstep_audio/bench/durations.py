"""`python -m fewstep_audio.bench.durations`: how much of the distance between synthesised and real speech do the durations make?

Rows, each as many digits, all digits and voices equally often, against other training takes (`bench.tts.figures`):

    recordings                      training takes outside the reference: the floor
    ... at each other's durations   each symbol of a take stretched to how long another take of that digit and voice has it
    ... at the model's durations    ... to how long the model says it: real speech in all but its rhythm
    model at recorded durations     the model's sampler over the alignment of those takes
    model                           as it speaks

Symbols are found in recordings by the model's own alignment, and stretched by linear interpolation, which the second row is the control of.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence

from fewstep.artifacts import load_as
from fewstep.bench.timing import machine, write
from fewstep_audio.bench.tts import BATCH, Mels, collected, figures, real, said
from fewstep_audio.commands_speak import DEFAULT_MODEL
from fewstep_audio.data.fsdd import SpokenDigits
from fewstep_audio.data.utterance import Utterance
from fewstep_audio.tts.text_to_speech import TextToSpeech


def warped(mel: Tensor, durations: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """(bands, sum of durations) -> (bands, sum of wanted), symbol by symbol; those of no frames are left out."""
    parts = mel.split(list(durations), 1)
    pairs = [(p, n) for p, n in zip(parts, wanted, strict=True) if p.shape[1] and n]
    return torch.cat([interpolate(p[None], n, mode="linear")[0] for p, n in pairs], 1)


def balanced(part: Sequence[Utterance], count: int) -> list[Utterance]:
    """The first of each voice and digit, as many of each, `count` in all, one voice and digit after the other.

    Raises:
        ValueError: too few recordings of one.
    """
    groups: dict[Any, list[Utterance]] = defaultdict(list)
    for u in part:
        groups[u.speaker, u.label].append(u)
    each = count // len(groups)
    if short := [k for k, v in groups.items() if len(v) < each]:
        raise ValueError(f"{each} takes of every voice and digit are needed; there are fewer of {short[:3]}")
    return [u for k in sorted(groups) for u in groups[k][:each]]


@torch.no_grad()
def rows(model: TextToSpeech, part: Sequence[Utterance], each: int, steps: int) -> dict[str, Mels]:
    """The first four, of takes that stand in groups of `each`; the sampler's noise is torch's own."""
    takes, digits = real(part, model), [cast(int, u.label) for u in part]
    ids = [model.symbols.ids(u.text) for u in part]
    theirs: list[list[int]] = []  # durations of the recordings, of the model
    ours: list[list[int]] = []
    made: list[Tensor] = []
    for items in (range(i, min(i + BATCH, len(part))) for i in range(0, len(part), BATCH)):
        batch = {
            "text": pad_sequence([ids[i] for i in items], batch_first=True),
            "symbols": torch.tensor([len(ids[i]) for i in items]),
            "mel": takes.mel[items.start : items.stop],
            "frames": takes.frames[items.start : items.stop],
            "speaker": torch.tensor([model.speakers.index(part[i].speaker or "") for i in items]),
        }
        aligned = model.align(batch)
        x0, cond, y = model.prepared(aligned)
        own = model.generate(torch.randn_like(x0), cond, y, steps) * model.scale + model.mean
        made += [m[:, :n] for m, n in zip(own, batch["frames"].tolist(), strict=True)]
        predicted = model.durations(aligned.log_durations, aligned.text_mask)
        lengths = batch["symbols"].tolist()
        theirs += [d[:n].tolist() for d, n in zip(aligned.durations, lengths, strict=True)]
        ours += [d[:n].tolist() for d, n in zip(predicted, lengths, strict=True)]
    mels = [m[:, :n] for m, n in zip(takes.mel, takes.frames.tolist(), strict=True)]
    others = [theirs[i - i % each + (i + 1) % each] for i in range(len(part))]
    at = lambda wanted: [warped(m, d, w) for m, d, w in zip(mels, theirs, wanted, strict=True)]
    found = {"recordings": mels, "recordings, each other's durations": at(others)}
    found |= {"recordings, the model's durations": at(ours), "model, recorded durations": made}
    return {name: collected(m, digits, model.mel.floor) for name, m in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows of every seed: of the reference, of which takes, of the noise."""
    parser = argparse.ArgumentParser(prog="python -m fewstep_audio.bench.durations", description=__doc__)
    parser.add_argument("--recordings", required=True, metavar="DIR", help="of the Free Spoken Digit Dataset")
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="DIR", help="default: the one that comes with it")
    parser.add_argument("--steps", type=int, default=1, help="of its sampler (default 1)")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, train = load_as(args.model, TextToSpeech).eval(), SpokenDigits(args.recordings).division()[0]
    voices = sorted({u.speaker for u in train if u.speaker})
    if unknown := set(voices) - set(model.speakers):
        parser.error(f"--recordings: {sorted(unknown)} are no voices of the model, which has {list(model.speakers)}")
    least = 10 * len(voices)
    if args.samples < least or args.samples % least:
        parser.error(f"--samples is a multiple of {least} (ten digits, {len(voices)} voices), not {args.samples}")
    numbers, each = [model.speakers.index(v) for v in voices], args.samples // least
    found = []
    for seed in args.seeds:
        torch.manual_seed(seed)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
        reference = real([train[i] for i in order[: args.samples]], model)
        try:
            part = balanced([train[i] for i in order[args.samples :]], args.samples)
        except ValueError as error:
            parser.error(f"--samples {args.samples}: beside as many for the reference, {error}")
        mels = rows(model, part, each, args.steps)
        mels |= {"model": said(model, numbers, args.samples, seed, args.steps)[0]}
        found.append({"seed": seed, "rows": {name: figures(m, reference) for name, m in mels.items()}})
    about = {"bench": "durations", **machine(), "samples": args.samples, "steps": args.steps}
    write(about | {"seeds": found}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
