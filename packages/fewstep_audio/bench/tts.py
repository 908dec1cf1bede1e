"""Speech synthesis of spoken digits: a teacher with all its steps and with one, its students with one and two, against real speech.

    python -m fewstep_audio.bench.tts --recordings DIR --out FILE.json

Every seed trains teacher and student anew; trainings that are there are taken as they are. Each row has the Frechet distance in the features
of the shipped recogniser to as many real training takes, the recogniser's accuracy, the deviation of the mels over that of the data, the
squared distance to the teacher from the same noise over that of two draws of the teacher, and what it cost. The distance to the teacher is
no measure of quality: the blurred mean, which one evaluation of the teacher gives, makes it small.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from fewstep.artifacts import load_as
from fewstep.bench import trainings
from fewstep.bench.timing import machine, write
from fewstep.metrics import frechet_distance
from fewstep_audio.data.fsdd import WORDS, SpokenDigits
from fewstep_audio.data.utterance import Utterance
from fewstep_audio.files import read_audio
from fewstep_audio.item_noise import item_generator
from fewstep_audio.recogniser import recognise, speech_features
from fewstep_audio.tts.masks import length_mask
from fewstep_audio.tts.text_to_speech import TextToSpeech

BATCH = 50


class Mels(NamedTuple):
    """Mels (N, bands, T) padded with the floor, their frames (N,) and the digits that they are to say (N,)."""

    mel: Tensor
    frames: Tensor
    digit: Tensor


def collected(mels: Sequence[Tensor], digits: Sequence[int], floor: float) -> Mels:
    """Of mels (bands, T)."""
    size = max(m.shape[1] for m in mels)
    padded = torch.stack([pad(m, (0, size - m.shape[1]), value=floor) for m in mels])
    return Mels(padded, torch.tensor([m.shape[1] for m in mels]), torch.tensor(digits))


def real(part: Sequence[Utterance], model: TextToSpeech) -> Mels:
    """The mels of recordings."""
    mels = [model.mel(read_audio(u.path).mono()[None])[0] for u in part]
    return collected(mels, [cast(int, u.label) for u in part], model.mel.floor)


@torch.no_grad()
def said(model: TextToSpeech, voices: Sequence[int], count: int, seed: int, steps: int) -> tuple[Mels, float, int]:
    """`count` digits, all digits and voices equally often; with the CPU seconds and network evaluations of one item."""
    calls = []
    hook = model.denoiser.net.register_forward_hook(lambda *_: calls.append(1))
    ids, mels, digits, spent, batches = [model.symbols.ids(w) for w in WORDS], [], [], 0.0, 0
    for n, speaker in enumerate(voices):
        own = range(n * count // len(voices), (n + 1) * count // len(voices))
        for items in (own[k : k + BATCH] for k in range(0, len(own), BATCH)):
            start = time.thread_time()
            spoken = model([ids[i % 10] for i in items], [item_generator(seed, i) for i in items], speaker, steps=steps)
            spent, batches = spent + time.thread_time() - start, batches + 1
            mels += [m[:, :n] for m, n in zip(spoken.mel, spoken.frames, strict=True)]
            digits += [i % 10 for i in items]
    hook.remove()
    return collected(mels, digits, model.mel.floor), spent / count, len(calls) // batches


def deviation(mels: Mels) -> float:
    """Of all valid elements around their mean."""
    inside = length_mask(mels.frames, mels.mel.shape[2]).bool().expand_as(mels.mel)
    return mels.mel[inside].std().item()


def figures(mels: Mels, reference: Mels) -> dict[str, float]:
    """Against the first len(mels) of a reference."""
    features = (speech_features(m.mel, m.frames) for m in (mels, reference))
    ours, theirs = features
    return {
        "frechet": frechet_distance(ours, theirs[: len(ours)]).item(),
        "accuracy": (recognise(mels.mel, mels.frames) == mels.digit).double().mean().item(),
        "deviation": deviation(mels) / deviation(reference),
    }


def apart(a: Mels, b: Mels) -> float:
    """Mean square between mels of the same frames."""
    inside = length_mask(a.frames, a.mel.shape[2]).bool().expand_as(a.mel)
    return (a.mel - b.mel)[inside].square().mean().item()


def rows(
    teacher: TextToSpeech,
    student: TextToSpeech,
    voices: Sequence[int],
    reference: Mels,
    count: int,
    seed: int,
    steps: int,
) -> dict[str, dict[str, Any]]:
    """Sampler -> figures, cost, and the distance to the teacher with so many steps."""
    many, cost, nfe = said(teacher, voices, count, seed, steps)
    other = said(teacher, voices, count, seed + 1000, steps)[0]
    between = apart(many, other)
    found = {f"teacher, {steps} steps": (many, cost, nfe)}
    found |= {"teacher, 1 step": said(teacher, voices, count, seed, 1)}
    found |= {f"student, {n} step{'s' * (n > 1)}": said(student, voices, count, seed, n) for n in (1, 2)}
    return {
        name: {
            **figures(mels, reference),
            "to_teacher": apart(mels, many) / between,
            "nfe": calls,
            "cpu_seconds": spent,
            "cpu_seconds_per_second": spent * count * teacher.mel.rate / (teacher.mel.hop * int(mels.frames.sum())),
        }
        for name, (mels, spent, calls) in found.items()
    }


def model_of(recipe: str, seed: int, args: Any) -> TextToSpeech:
    """The model of a recipe, trained where it is not yet."""
    return load_as(
        trainings.trained(
            f"audio/{recipe}", seed, args.folder, [f"--data.init_args.corpus.init_args.folder={args.recordings}"]
        )
        / "last",
        TextToSpeech,
    )


def measured(args: Any, seed: int) -> dict[str, Any]:
    """One seed: trainings, figures of the samplers, and of real test takes against real training takes."""
    row = args.folder / str(seed) / f"{args.student}.json"
    if row.is_file():
        return json.loads(row.read_text())
    teacher, student = (model_of(name, seed, args) for name in (args.teacher, args.student))
    train, test = SpokenDigits(args.recordings).division()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    reference = real([train[i] for i in order[: max(args.samples, len(test))]], teacher)
    floor = figures(real(test, teacher), reference)
    voices = [teacher.speakers.index(s) for s in args.voices]
    result = {
        "seed": seed,
        "samples": args.samples,
        "voices": args.voices,
        "teacher": args.teacher,
        "student": args.student,
        "parameters": {
            k: sum(p.numel() for p in m.parameters()) for k, m in (("teacher", teacher), ("student", student))
        },
        "real": floor | {"samples": len(test)},
        "rows": rows(teacher, student, voices, reference, args.samples, seed, args.steps or teacher.steps),
    }
    row.write_text(json.dumps(result, indent=2))
    return result


def medians(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Sampler -> medians of its figures over the seeds."""
    return {
        name: {k: median(r["rows"][name][k] for r in results) for k in results[0]["rows"][name]}
        for name in results[0]["rows"]
    }


def main(argv: Sequence[str] = ()) -> int:
    """Measure what is missing and write the table."""
    parser = trainings.parser("tts", __doc__, None)
    parser.prog = "python -m fewstep_audio.bench.tts"
    parser.set_defaults(folder=Path("runs/bench_tts"))
    parser.add_argument("--recordings", required=True, metavar="DIR", help="of the Free Spoken Digit Dataset")
    parser.add_argument("--teacher", default="fsdd_tts", metavar="RECIPE")
    parser.add_argument("--student", default="fsdd_tts_cd", metavar="RECIPE")
    parser.add_argument("--steps", type=int, help="of the teacher (default: its own)")
    parser.add_argument(
        "--samples", type=int, default=600, help="generated per sampler, ten for every voice or a multiple"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    # A voice without recordings has never been trained.
    args.voices = sorted({u.speaker for u in SpokenDigits(args.recordings).division()[0] if u.speaker})
    least = 10 * len(args.voices)
    if args.samples < least or args.samples % least:
        parser.error(f"--samples is a multiple of {least} (ten digits, {len(args.voices)} voices), not {args.samples}")
    torch.set_num_threads(args.threads)
    results = [measured(args, seed) for seed in args.seeds]
    write({"bench": "tts", **machine(), "medians": medians(results), "seeds": results}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
