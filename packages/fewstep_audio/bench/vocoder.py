"""`python -m fewstep_audio.bench.vocoder`: copy synthesis of spoken digits by vocoders of 1 to 32 evaluations.

Systems: Griffin-Lim; the flow-matching teacher in 16 steps of the midpoint rule (32 evaluations) and, as it is, in two of Euler's; the student of
two steps that adversarial flow matching makes of it; the same network as a plain GAN, called once. Each is trained by its recipe in
DIR/SEED/RECIPE after those that it needs. Finished trainings and rows lie there and are not made again.

Test set: held-out takes, each by itself. Figures against the recording: narrow-band PESQ; multi-scale mel distance; level, dB above the
recording's, which PESQ does not hear; CPU seconds and wall seconds per second of sound on one thread.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.artifacts import read_config
from fewstep.bench.timing import machine, write
from fewstep.bench.trainings import trained
from fewstep.generator import pretrained
from fewstep.solvers import DDIM, Solver
from fewstep_audio.data.fsdd import SpokenDigits
from fewstep_audio.data.recordings import Recordings
from fewstep_audio.griffin_lim import GriffinLim
from fewstep_audio.mels import PRESETS, Mel
from fewstep_audio.metrics import MultiScaleMel, pesq, summary
from fewstep_audio.vocoder.vocoder import Vocoder

SHORTEST = 0.25  # seconds: PESQ has no score of less


class System(NamedTuple):
    """How an artifact is sampled: steps, by a solver in place of its own; evaluations per clip."""

    recipe: str
    steps: int
    solver: Solver | None
    evaluations: int


FAMILIES = {
    "specflow": {
        "teacher": System("fsdd_specflow", 16, None, 32),
        "teacher untuned": System("fsdd_specflow", 2, DDIM(), 2),
        "student": System("fsdd_specflow_turbo", 2, None, 2),
        "single-pass GAN": System("fsdd_specflow_gan", 1, None, 1),
    },
    "periodwave": {
        "teacher": System("fsdd_periodwave_tiny", 16, None, 32),
        "teacher untuned": System("fsdd_periodwave_tiny", 2, DDIM(), 2),
        "student": System("fsdd_periodwave_tiny_turbo", 2, None, 2),
    },
}


def clips(folder: str, most: int, mel: Mel) -> list[Tensor]:
    """At most so many held-out takes (N,), evenly over digits and speakers, cut to whole frames."""
    held_out = Recordings(SpokenDigits(folder).division()[1], mel.rate, SHORTEST)
    stride = max(len(held_out) / most, 1.0)
    chosen = sorted({int(i * stride) for i in range(min(most, len(held_out)))})
    waves = [held_out[i].wave for i in chosen]
    return [w[: len(w) // mel.hop * mel.hop] for w in waves]


@torch.no_grad()
def judged(vocode: Callable[[Tensor], Tensor], mel: Mel, waves: Sequence[Tensor]) -> dict[str, Any]:
    """The figures of copies, as `metrics.summary` puts them; vocode: mel (1, bands, T) -> wave (1, N)."""
    distance = MultiScaleMel(mel.rate)
    found: dict[str, list[Any]] = {k: [] for k in ("pesq", "mel", "level", "cpu", "real_time_factor")}
    for wave in waves:
        frames, seconds = mel(wave[None]), len(wave) / mel.rate
        wall, cpu = time.perf_counter(), time.process_time()
        copy = vocode(frames)[:, : len(wave)]
        found["cpu"].append((time.process_time() - cpu) / seconds)
        found["real_time_factor"].append((time.perf_counter() - wall) / seconds)
        found["pesq"].append(pesq(copy[0], wave, mel.rate, "nb"))
        found["mel"].append(float(distance(copy, wave[None])))
        found["level"].append(float(10 * torch.log10(copy.square().mean() / wave.square().mean())))
    return {k: summary(v)._asdict() for k, v in found.items()}


def rows(
    family: str, names: Sequence[str], seed: int, folder: Path, data: str, waves: Sequence[Tensor], mel: Mel
) -> Iterator[dict[str, Any]]:
    """A row per system, as far as possible from files of an earlier run."""
    floor = GriffinLim(mel)
    yield {"system": "Griffin-Lim", "seed": seed, "evaluations": 0} | _kept(
        folder / str(seed) / "griffin_lim.json", lambda: judged(floor.vocode, mel, waves)
    )
    for name in names:
        system = FAMILIES[family][name]
        place = (
            trained(f"audio/{system.recipe}", seed, folder, [f"--data.init_args.corpus.init_args.folder={data}"])
            / "last"
        )
        model = pretrained(str(place))
        assert isinstance(model, Vocoder)
        vocode = partial(model, steps=system.steps, solver=system.solver, seed=seed)
        about = {"system": f"{family} {name}", "seed": seed, "steps": system.steps, "evaluations": system.evaluations}
        about |= {"parameters": sum(p.numel() for p in model.parameters())}
        about |= {"training_cpu": read_config(place)["provenance"].get("cpu_seconds")}
        file = folder / str(seed) / f"{system.recipe}_{system.evaluations}.json"
        yield about | _kept(file, partial(judged, vocode, model.mel, waves))


def _kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make(), indent=2))
    return json.loads(file.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Train and judge what is missing, and print all rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m fewstep_audio.bench.vocoder", description=__doc__)
    parser.add_argument("--digits", required=True, metavar="DIR", help="recordings of the Free Spoken Digit Dataset")
    parser.add_argument("--family", choices=list(FAMILIES), default="specflow")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="of the family (default all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=300, help="held-out takes (default 300)")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_vocoder"), metavar="DIR")
    parser.add_argument("--out", metavar="FILE")
    args = parser.parse_args(argv)
    names = args.systems or list(FAMILIES[args.family])
    if unknown := set(names) - set(FAMILIES[args.family]):
        parser.error(f"--systems: no {sorted(unknown)} in {args.family}; allowed: {list(FAMILIES[args.family])}")
    torch.set_num_threads(1)
    mel = PRESETS["digits_8k"]
    waves, found = clips(args.digits, args.clips, mel), []
    for seed in args.seeds:
        for row in rows(args.family, names, seed, args.folder, args.digits, waves, mel):
            found.append(row)
            sys.stderr.write(
                f"seed {seed} {row['system']}: PESQ {row['pesq']['mean']:.3f}, mel {row['mel']['mean']:.3f}\n"
            )
    write({"bench": "vocoder", "family": args.family, **machine(), "clips": len(waves), "rows": found}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
