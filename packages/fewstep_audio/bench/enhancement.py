"""`python -m fewstep_audio.bench.enhancement`: enhancement at 1 to 60 evaluations on noisy spoken digits and on recorded noise.

Systems: the noisy speech itself, a Wiener filter, the predictive network, the Schroedinger bridge, the SGMSE+ teacher (30 predictor-
corrector steps, 60 evaluations), its students and StoRM, each trained by its recipe in DIR/SEED/RECIPE after those that it needs.
Finished trainings and rows lie there and are not made again, so that an interrupted bench goes on.

Test set: held-out takes, several to a clip, with white, coloured and babble noise at 0, 2.5, 5, 7.5 and 10 dB, the same for all
systems and seeds. Figures: SI-SDR (dB), narrow-band PESQ, ESTOI; evaluations, and CPU seconds per second of sound on one thread.
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

from fewstep.bench.timing import machine, write
from fewstep.bench.trainings import cost, trained
from fewstep.train.shell import iteration_seed
from fewstep_audio.data.degradation import AddedNoise
from fewstep_audio.data.enhancement_crops import DegradedCrops
from fewstep_audio.data.fsdd import SpokenDigits
from fewstep_audio.data.pairs import NoisyPairs, match_folders
from fewstep_audio.data.recordings import Recordings
from fewstep_audio.enhancement.enhancer import pretrained_enhancer
from fewstep_audio.enhancement.wiener import wiener
from fewstep_audio.metrics import estoi, pesq, si_sdr, summary

RATE, SAMPLES = 8000, 24000
SNRS = (0.0, 2.5, 5.0, 7.5, 10.0)
# Recipe -> the numbers of steps it is judged at.
SYSTEMS = {
    "fsdd_predictive": (1,),
    "fsdd_sb": (1, 2, 4, 8, 16),
    "fsdd_sgmse": (30,),
    "fsdd_sgmse_student": (1, 2),
    "fsdd_sgmse_crp": (1, 2),
    "fsdd_sgmse_cd": (1, 2),
    "fsdd_storm": (10,),
}

# (noisy (1, N), index of the clip) -> (1, N).
System = Callable[[Tensor, int], Tensor]


class Clip(NamedTuple):
    """A test item: {"clean", "noisy"}: (N,) each, and the SNR in dB, None for recorded noise."""

    sound: dict[str, Tensor]
    snr: float | None


def digits(folder: str, clips: int) -> list[Clip]:
    """`clips` mixtures at each SNR, of held-out takes; clip i is the same whatever their number."""
    held_out = Recordings(SpokenDigits(folder).division()[1], RATE)
    found = []
    for k, snr in enumerate(SNRS):
        data = DegradedCrops(held_out, SAMPLES, AddedNoise(snr, snr))
        stride = max(len(data) // clips, 1)
        seeds = (torch.Generator().manual_seed(iteration_seed(2024, k, i)) for i in range(clips))
        found += [Clip(data.draw(stride * i % len(data), seed), snr) for i, seed in enumerate(seeds)]
    return found


def recorded(folder: str) -> list[Clip]:
    """All pairs of folder/clean and folder/noisy, whole."""
    pairs = NoisyPairs(match_folders(Path(folder) / "clean", Path(folder) / "noisy"), RATE, SAMPLES)
    return [Clip(pairs.whole(i), None) for i in range(len(pairs))]


def systems(seed: int, folder: Path, data: str, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], System]]:
    """What a row says of a system, and the system; those without learning first."""
    yield {"system": "noisy", "steps": 0, "evaluations": 0}, lambda noisy, i: noisy
    yield {"system": "wiener", "steps": 0, "evaluations": 0}, lambda noisy, i: wiener(noisy)
    for name in names:
        place = trained(f"audio/{name}", seed, folder, [f"--data.init_args.corpus.init_args.folder={data}"])
        model = pretrained_enhancer(str(place / "last"))
        for steps in SYSTEMS[name]:
            about = {"system": name, "steps": steps, "evaluations": model.evaluations(steps)}
            yield about | cost(place), partial(_run, model, seed, steps)


def _run(model: Callable[..., Tensor], seed: int, steps: int, noisy: Tensor, i: int) -> Tensor:
    return model(noisy, seed=seed, items=[i], steps=steps)


@torch.no_grad()
def judged(system: System, clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """One entry per clip."""
    entries = []
    for i, (sound, snr) in enumerate(clips):
        start = time.process_time()
        own = system(sound["noisy"][None], i)
        spent, own, clean = time.process_time() - start, own[0], sound["clean"]
        entries.append(
            {
                "snr": snr,
                "si_sdr": si_sdr(own, clean).item(),
                "pesq": pesq(own, clean, RATE, "nb"),
                "estoi": estoi(own, clean, RATE),
                "cpu": spent * RATE / len(own),
            }
        )
    return entries


def means(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures as `metrics.summary` puts them: mean, standard error, clips counted and skipped."""
    figures = ("si_sdr", "pesq", "estoi", "cpu")
    return {"clips": len(entries), **{k: summary([e[k] for e in entries])._asdict() for k in figures}}


def rows(
    seed: int, folder: Path, data: str, names: Sequence[str], tests: dict[str, list[Clip]]
) -> Iterator[dict[str, Any]]:
    """A row per system and number of steps, as far as possible from files of an earlier run."""
    for about, system in systems(seed, folder, data, names):
        file = folder / str(seed) / f"{about['system']}_{about['steps']}.json"
        if not file.is_file():
            row = about | {"seed": seed}
            for test, clips in tests.items():
                entries = judged(system, clips)
                row[test] = means(entries)
                snrs = sorted({e["snr"] for e in entries} - {None})
                row |= {f"{test} at {snr:g} dB": means([e for e in entries if e["snr"] == snr]) for snr in snrs}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(row, indent=2))
        yield about | json.loads(file.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Train and judge what is missing, and print all rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m fewstep_audio.bench.enhancement", description=__doc__)
    parser.add_argument("--digits", required=True, metavar="DIR", help="recordings of the Free Spoken Digit Dataset")
    parser.add_argument("--pairs", metavar="DIR", help="folder of clean and noisy with recorded pairs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=40, help="at each of the five SNRs (default 40)")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_enhancement"), metavar="DIR")
    parser.add_argument("--out", metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    tests = {"digits": digits(args.digits, args.clips)} | ({"pairs": recorded(args.pairs)} if args.pairs else {})
    found = []
    for seed in args.seeds:
        for row in rows(seed, args.folder, args.digits, args.systems, tests):
            found.append(row)
            sys.stderr.write(f"seed {seed} {row['system']} {row['steps']} steps: {row['digits']}\n")
    write({"bench": "enhancement", **machine(), "clips": args.clips, "rows": found}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
