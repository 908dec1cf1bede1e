"""`fewstep demo audio`: train a small SGMSE+ teacher that takes noise out of speech, distil its sixty evaluations to one, compare, report.

The clean speech is `--data`, or spoken digits said by the model that comes with the package.
"""

import argparse
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
from rich.console import Console
from torch import Tensor

import fewstep
from fewstep import recipes
from fewstep.command import UsageError
from fewstep.report import Curve, Report
from fewstep.report_folder import report_folder
from fewstep.solvers import DDIM
from fewstep.train.fit import instantiate
from fewstep.train.stage import Trained, pace, run_stage
from fewstep_audio.commands_speak import DEFAULT_MODEL
from fewstep_audio.data.fsdd import WORDS
from fewstep_audio.enhancement.enhancer import Enhancer, pretrained_enhancer
from fewstep_audio.files import Audio, write_audio
from fewstep_audio.griffin_lim import GriffinLim
from fewstep_audio.metrics import si_sdr
from fewstep_audio.picture import spectrograms
from fewstep_audio.speak import speak
from fewstep_audio.tts.text_to_speech import TextToSpeech

SHARE = {"teacher": 0.55, "student": 0.37}  # of the training time; the rest is validation and comparison
RECIPES = {"teacher": "audio/fsdd_sgmse", "student": "audio/fsdd_sgmse_crp"}
# Name -> model, steps, and what is said of it.
WAYS = {
    "teacher 60": ("teacher", 30, "30 predictor-corrector steps"),
    "teacher 1": ("teacher", 1, "one evaluation"),
    "student 1": ("student", 1, "one evaluation"),
    "student 2": ("student", 2, "two evaluations"),
}
CLIPS, SECONDS, SHOWN = 16, 2.0, 2
TAKES = 6


def run(args: argparse.Namespace) -> int:
    """The whole demo; the report folder appears only when everything is in it."""
    out, start, console = Path(args.out), time.perf_counter(), Console(stderr=True)
    for name in ("data", "held_out"):
        if (folder := getattr(args, name)) and not Path(folder).exists():
            raise UsageError(f"--{name.replace('_', '-')} {folder}: no such folder; allowed: a folder of recordings")
    if args.threads:
        torch.set_num_threads(args.threads)
    with report_folder(out) as work:
        threads = torch.get_num_threads()
        console.print(
            f"[bold]fewstep demo[/]: speech enhancement, about {args.minutes:g} minutes of training on {threads} threads"
        )
        source = args.data or str(said_digits(work / "speech", args.seed, console))
        stages = {name: train(name, source, args, work, console) for name in ("teacher", "student")}
        held_out = stages["student"].held_out
        methods, sounds = compare(work, held_out, args.seed)
        metrics = {
            "fewstep": fewstep.__version__,
            "seed": args.seed,
            "threads": threads,
            "data": args.data or "spoken digits, said by the model that comes with the package",
            "training": {name: stage.facts for name, stage in stages.items()},
            "clips": len(held_out["clean"]),
            "methods": methods,
            "seconds": time.perf_counter() - start,
        }
        write(work, metrics, sounds, stages)
    summary(console, metrics, out)
    if args.json:
        print(json.dumps(metrics, indent=2))
    return 0


def said_digits(folder: Path, seed: int, console: Console) -> Path:
    """Every digit by every voice, `TAKES` times, as files."""
    model = fewstep.load(DEFAULT_MODEL)
    assert isinstance(model, TextToSpeech)
    folder.mkdir()
    with console.status("speech: the package's own model says digits"):
        for voice in model.speakers:
            pieces = speak(model.eval(), GriffinLim(model.mel), WORDS * TAKES, seed, voice, steps=2)
            for n, piece in enumerate(pieces):
                sound = Audio(piece.wave[None] / piece.wave.abs().max().clamp_min(1e-3) * 0.7, model.mel.rate)
                write_audio(folder / f"{n % len(WORDS)}_{voice}_{n // len(WORDS)}.wav", sound)
    return folder


# --- training ---------------------------------------------------------------------------------------------------------


def train(name: str, source: str, args: argparse.Namespace, work: Path, console: Console) -> Trained:
    """Run a shipped recipe within its share of the time; leaves the artifact in work/name."""
    corpus = {
        "class_path": "fewstep_audio.data.speech.Speech",
        "init_args": {"source": source} | ({"held_out": args.held_out} if args.held_out else {}),
    }
    options = [
        f"--data.init_args.corpus={json.dumps(corpus)}",
        f"--data.init_args.seed={args.seed}",
        f"--data.init_args.validation_samples={round(SECONDS * 8000)}",
        f"--data.init_args.validate_on={CLIPS}",
        f"--model.init_args.seed={args.seed}",
        f"--trainer.default_root_dir={work / f'{name}-run'}",
        "--trainer.logger=false",
        "--trainer.limit_val_batches=1",  # sixty evaluations of all clips would take as long as the training
        "--trainer.log_every_n_steps=10",
    ]
    if name == "student":
        options.append(f"--model.init_args.teacher.init_args.source={work / 'teacher'}")
    file = recipes.find(RECIPES[name])
    with console.status(f"{name}: measuring this machine"):
        seconds = pace(instantiate(file, [*options, "--model.init_args.iterations=1"]))
    iterations = max(20, int(args.minutes * 60 * SHARE[name] / seconds))
    options += [f"--model.init_args.iterations={iterations}", f"--trainer.val_check_interval={iterations}"]
    cli = instantiate(file, options)
    facts, curves = run_stage(cli, work / name)
    batches = list(cli.datamodule.val_dataloader())
    held_out = {k: torch.cat([batch[k] for batch in batches]) for k in ("clean", "noisy")}
    return Trained(facts | {"recipe": RECIPES[name]}, curves, held_out)


# --- comparison -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def compare(
    work: Path, batch: dict[str, Tensor], seed: int
) -> tuple[dict[str, dict[str, float]], list[dict[str, Audio]]]:
    """Figures by method over the held-out clips, and the sounds of the first few."""
    models = {name: pretrained_enhancer(str(work / name)).eval() for name in ("teacher", "student")}
    clean, noisy = batch["clean"], batch["noisy"]
    rate, found = models["teacher"].rate, {"noisy": noisy}
    methods: dict[str, dict[str, float]] = {"noisy": {"si_sdr": si_sdr(noisy, clean).mean().item()}}
    for name, (which, steps, _) in WAYS.items():
        start = time.perf_counter()
        found[name] = run_enhancer(models[which], noisy, seed, steps)
        seconds = (time.perf_counter() - start) * rate / noisy.numel()
        methods[name] = {"si_sdr": si_sdr(found[name], clean).mean().item(), "seconds_per_second": seconds}
        methods[name]["to_teacher"] = si_sdr(found[name], found["teacher 60"]).mean().item()
    found["clean"] = clean
    return methods, [{k: Audio(v[i : i + 1], rate) for k, v in found.items()} for i in range(min(SHOWN, len(clean)))]


def run_enhancer(model: Enhancer, noisy: Tensor, seed: int, steps: int) -> Tensor:
    """One evaluation of a model of many steps is Euler's step, not one of its predictor and corrector."""
    euler = DDIM() if steps == 1 else None
    return model(noisy, seed, steps=steps, solver=euler)


# --- report -----------------------------------------------------------------------------------------------------------


def write(
    folder: Path, metrics: dict[str, Any], sounds: Sequence[dict[str, Audio]], stages: dict[str, Trained]
) -> None:
    """metrics.json, sounds/*.wav and index.html."""
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (folder / "sounds").mkdir()
    for n, group in enumerate(sounds):
        for name, audio in group.items():
            write_audio(folder / "sounds" / f"{n}-{name.replace(' ', '-')}.wav", audio)
    build(metrics, sounds, stages).write(folder / "index.html")


def build(metrics: dict[str, Any], sounds: Sequence[dict[str, Audio]], stages: dict[str, Trained]) -> Report:
    """Headline, sounds and their spectrograms, training curves, all figures, how it was made."""
    m = metrics["methods"]
    one, full = m["student 1"], m["teacher 60"]
    report = Report(
        "One evaluation instead of sixty", "A small SGMSE+ speech enhancer, distilled to one step on this machine."
    )
    faster = full["seconds_per_second"] / one["seconds_per_second"]
    report.headline(
        [
            (f"{faster:.0f}x", "faster", f"{1000 * one['seconds_per_second']:.0f} ms per second of sound"),
            (
                f"{one['si_sdr'] - m['noisy']['si_sdr']:+.1f} dB",
                "SI-SDR over the noisy speech",
                f"teacher {full['si_sdr'] - m['noisy']['si_sdr']:+.1f} dB in sixty evaluations",
            ),
            (
                f"{metrics['seconds'] / 60:.1f} min",
                "all of it",
                f"{metrics['threads']} CPU threads, seed {metrics['seed']}",
            ),
        ]
    )
    for n, group in enumerate(sounds):
        report.sounds(f"Held-out clip {n + 1}", [(name, wav(audio)) for name, audio in group.items()])
        report.gallery("", [("spectrograms", spectrograms(group))])
    for name, term in (("teacher", "denoising"), ("student", "correction")):
        curve = Curve(term, *stages[name].curves[f"train/{term}"])
        report.curves(f"{name.title()}: training", [curve], "iteration", "loss")
    rows = [["noisy", f"{m['noisy']['si_sdr']:.2f}", "", ""]]
    for name, (_, _, about) in WAYS.items():
        to_teacher = "" if name == "teacher 60" else f"{m[name]['to_teacher']:.2f}"
        rows.append(
            [f"{name}: {about}", f"{m[name]['si_sdr']:.2f}", to_teacher, f"{m[name]['seconds_per_second']:.4f}"]
        )
    columns = ["method", "SI-SDR (dB)", "SI-SDR to the teacher's output (dB)", "seconds per second"]
    report.table(
        "All figures",
        columns,
        rows,
        note=f"Means over {metrics['clips']} clips of {SECONDS:g} s with noise at 0 to 10 dB.",
    )
    facts = [
        f"{name.title()}: recipe {s.facts['recipe']}, {s.facts['parameters']:,} parameters, {s.facts['iterations']} iterations in "
        f"{s.facts['seconds']:.0f} s ({s.facts['cpu_seconds']:.0f} CPU seconds)"
        for name, s in stages.items()
    ]
    report.text("How it was made", [*facts, f"Data: {metrics['data']}. One seed ({metrics['seed']})."])
    return report


def wav(audio: Audio) -> bytes:
    """16-bit, as the bytes of a file."""
    file = io.BytesIO()
    soundfile.write(file, audio.data.T.clamp(-1, 1).numpy(), audio.rate, "PCM_16", format="WAV")
    return file.getvalue()


def summary(console: Console, metrics: dict[str, Any], out: Path) -> None:
    """Two lines."""
    m = metrics["methods"]
    one, full = m["student 1"], m["teacher 60"]
    console.print(
        f"[bold]student, 1 evaluation[/]: {full['seconds_per_second'] / one['seconds_per_second']:.0f}x faster than sixty; SI-SDR "
        f"{one['si_sdr']:.2f} dB (teacher {full['si_sdr']:.2f}, teacher in one {m['teacher 1']['si_sdr']:.2f}, noisy {m['noisy']['si_sdr']:.2f})"
    )
    console.print(f"report: {out / 'index.html'}   try: fewstep enhance NOISY OUT.wav --model {out / 'student'}")
