"""`fewstep demo video`: train a small teacher of clips, distil it to four steps and to one by DMD2, compare, report."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

import fewstep
from fewstep import recipes
from fewstep.command import UsageError
from fewstep.report import Curve, Report
from fewstep.report_folder import report_folder
from fewstep.solvers import DDIM, Solver
from fewstep.train.fit import instantiate
from fewstep.train.stage import Trained, pace, run_stage
from fewstep_video.data.corpora import ClassFiles, ClassFolders, Corpus
from fewstep_video.files import write_video
from fewstep_video.metrics import diversity, flow_figures, mfvd, rfvd
from fewstep_video.preview import write_picture, write_preview
from fewstep_video.sheet import contact_sheet
from fewstep_video.video_generator import VideoGenerator

SHARE = {"teacher": 0.6, "student": 0.35}  # of the training time; the rest is validation
CLIPS = 256


def run(args: argparse.Namespace) -> int:
    """The whole demo; the report folder appears only when everything is in it."""
    out, start, console = Path(args.out), time.perf_counter(), Console(stderr=True)
    if args.held_out:
        raise UsageError("the demo of video holds out clips itself: --held-out is not for it")
    if args.threads:
        torch.set_num_threads(args.threads)
    family, options = source(args)
    with report_folder(out) as work:
        threads = torch.get_num_threads()
        console.print(f"[bold]fewstep demo[/]: clips, about {args.minutes:g} minutes of training on {threads} threads")
        teacher = train("teacher", f"video/{family}_teacher", options["teacher"], args, work, console)
        at = f"--model.init_args.teacher.init_args.source={work / 'teacher'}"
        student = train("student", f"video/{family}_dmd2", [*options["student"], at], args, work, console)
        methods, sheets = compare(work, student.held_out, args.seed)
        metrics = {
            "fewstep": fewstep.__version__,
            "seed": args.seed,
            "threads": threads,
            "data": args.data or "one moving disc, drawn afresh",
            "training": {"teacher": teacher.facts, "student": student.facts},
            "methods": methods,
            "seconds": time.perf_counter() - start,
        }
        write(work, metrics, sheets, teacher, student)
    summary(console, metrics, out)
    if args.json:
        print(json.dumps(metrics, indent=2))
    return 0


def source(args: argparse.Namespace) -> tuple[str, dict[str, list[str]]]:
    """The family of recipes, and the options that put them on the user's videos."""
    seed = [f"--data.init_args.seed={args.seed}"]
    if not args.data:
        return "shapes", {"teacher": seed, "student": seed}
    folder = Path(args.data)
    if not folder.is_dir():
        raise UsageError(
            f"--data {folder}: no such folder; allowed: a folder of videos, or of class folders with videos"
        )
    kind: type[Corpus] = ClassFolders if any(p.is_dir() for p in folder.iterdir()) else ClassFiles
    names = list(kind(str(folder)).names())
    corpus = f"--data.init_args.corpus={json.dumps({'class_path': f'{kind.__module__}.{kind.__name__}', 'init_args': {'folder': str(folder)}})}"
    videos = len(kind(str(folder)).items())
    own = [*seed, corpus, f"--data.init_args.held_out={max(1, min(4, videos // 4))}"]
    net = "--model.init_args.student.init_args.denoiser.init_args.net.init_args.condition.init_args.count"
    return "asl", {
        "teacher": [*own, f"{net}={len(names)}", f"--model.init_args.student.init_args.names={json.dumps(names)}"],
        "student": own,
    }


# --- training ---------------------------------------------------------------------------------------------------------


def train(
    name: str, recipe: str, overrides: Sequence[str], args: argparse.Namespace, work: Path, console: Console
) -> Trained:
    """Run a shipped recipe within its share of the time; leaves the artifact in work/name."""
    runs, file = work / f"{name}-run", recipes.find(recipe)
    options = [
        *overrides,
        f"--model.init_args.seed={args.seed}",
        f"--trainer.default_root_dir={runs}",
        "--trainer.logger=false",
        "--trainer.log_every_n_steps=10",
    ]
    with console.status(f"{name}: measuring this machine"):
        seconds = pace(instantiate(file, [*options, "--model.init_args.iterations=1"]))
    iterations = max(20, int(args.minutes * 60 * SHARE[name] / seconds))
    options += [f"--model.init_args.iterations={iterations}", f"--trainer.val_check_interval={-(-iterations // 2)}"]
    cli = instantiate(file, options)
    # Score distillation has its best point before its end.
    facts, curves = run_stage(cli, work / name, "last" if name == "teacher" else "best")
    facts |= {"recipe": recipe}
    return Trained(facts, curves, cli.datamodule.val)


# --- comparison -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def compare(work: Path, batch: dict[str, Tensor], seed: int) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """Figures of teacher and student by steps, and contact sheets; leaves videos in work/clips."""
    teacher, student = (cast(VideoGenerator, fewstep.load(work / n)).eval() for n in ("teacher", "student"))
    real, label = batch["video"], batch["label"][:CLIPS]
    euler: Solver = DDIM()
    ways = {"teacher 50": (teacher, 50, None), "teacher 4": (teacher, 4, euler), "teacher 1": (teacher, 1, euler)}
    ways |= {"student 4": (student, 4, None), "student 1": (student, 1, None)}
    half = len(real) // 2
    methods, sheets = {"real": {"mfvd": mfvd(real[:half], real[half:])}}, {"real": contact_sheet(real[:4])}
    methods["real"] |= {"rfvd": rfvd(real[:half], real[half:]), "dynamic": _dynamic(real), "diversity": 1.0}
    (work / "clips").mkdir()
    for name, (model, steps, solver) in ways.items():
        start = time.perf_counter()
        clips = model(label, seed=1000 + seed, steps=steps, solver=solver)
        seconds = (time.perf_counter() - start) / len(label)
        found = {"mfvd": mfvd(real, clips), "rfvd": rfvd(real, clips), "dynamic": _dynamic(clips)}
        methods[name] = found | {"diversity": diversity(real, clips), "seconds": seconds}
        sheets[name] = contact_sheet(clips[:4])
        file = work / "clips" / f"{name.replace(' ', '-')}.mp4"
        shown = clips[:1].repeat_interleave(max(1, 128 // clips.shape[4]), 3)
        shown = shown.repeat_interleave(max(1, 128 // clips.shape[4]), 4)[0]
        write_video(file, shown, model.fps)
        write_preview(file.with_suffix(".webp"), shown, model.fps)
    return methods, sheets


def _dynamic(video: Tensor) -> float:
    return flow_figures(video[:32]).dynamic.mean().item()


# --- report -----------------------------------------------------------------------------------------------------------


def write(folder: Path, metrics: dict[str, Any], sheets: dict[str, Tensor], teacher: Trained, student: Trained) -> None:
    """metrics.json, pictures/*.png and index.html."""
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (folder / "pictures").mkdir()
    for name, sheet in sheets.items():
        write_picture(folder / "pictures" / f"{name.replace(' ', '-')}.png", sheet)
    build(metrics, sheets, teacher, student).write(folder / "index.html")


def build(metrics: dict[str, Any], sheets: dict[str, Tensor], teacher: Trained, student: Trained) -> Report:
    """Headline, contact sheets, training curves, all figures, how it was made."""
    m = metrics["methods"]
    four, full = m["student 4"], m["teacher 50"]
    report = Report(
        "Four steps instead of fifty", "A small flow-matching teacher of clips, distilled by DMD2 on this machine."
    )
    report.headline(
        [
            (f"{full['seconds'] / four['seconds']:.1f}x", "faster", f"{1000 * four['seconds']:.1f} ms a clip"),
            (f"{four['mfvd']:.0f}", "motion distance in four steps", f"teacher {full['mfvd']:.0f} in fifty"),
            (f"{m['student 1']['mfvd']:.0f}", "in one step", f"teacher {m['teacher 1']['mfvd']:.0f} in one"),
            (
                f"{metrics['seconds'] / 60:.1f} min",
                "all of it",
                f"{metrics['threads']} threads, seed {metrics['seed']}",
            ),
        ]
    )
    shown = [(name, (sheet.permute(1, 2, 0) * 255).round().byte().numpy()) for name, sheet in sheets.items()]
    report.gallery("Clips", shown, note="Every row is a clip, its frames from left to right. Videos lie in clips/.")
    for name, stage, term in (("Teacher", teacher, "denoising"), ("Student", student, "score")):
        report.curves(f"{name}: training", [Curve(term, *stage.curves[f"train/{term}"])], "iteration", "loss")
    columns = ["mfvd", "rfvd", "dynamic", "diversity", "seconds"]
    rows = [[name, *(f"{v[k]:.4g}" if k in v else "" for k in columns)] for name, v in m.items()]
    note = (
        "mFVD and rFVD: distance to held-out clips in random features, of motion and of whole clips; the row of real clips is the floor, one half "
        "against the other. Dynamic: length of the largest flow; a frozen clip has 0."
    )
    report.table("All figures", ["method", *columns], rows, note=note)
    facts = [
        f"{name}: recipe {t.facts['recipe']}, {t.facts['parameters']:,} parameters, {t.facts['iterations']} iterations in "
        f"{t.facts['seconds']:.0f} s ({t.facts['cpu_seconds']:.0f} CPU seconds)"
        for name, t in (("Teacher", teacher), ("Student", student))
    ]
    report.text("How it was made", [*facts, f"Data: {metrics['data']}. One seed ({metrics['seed']})."])
    return report


def summary(console: Console, metrics: dict[str, Any], out: Path) -> None:
    """Two lines."""
    m = metrics["methods"]
    four, full, naive = m["student 4"], m["teacher 50"], m["teacher 1"]
    console.print(
        f"[bold]student, 4 steps[/]: {full['seconds'] / four['seconds']:.1f}x faster than 50; mFVD {four['mfvd']:.0f} (teacher {full['mfvd']:.0f}); "
        f"1 step {m['student 1']['mfvd']:.0f} (teacher in one {naive['mfvd']:.0f}; real {m['real']['mfvd']:.0f})"
    )
    console.print(f"report: {out / 'index.html'}   try: fewstep video generate OUT.mp4 --model {out / 'student'}")
