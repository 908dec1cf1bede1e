"""`fewstep demo restoration`: train a small ResShift teacher on photographs, distil it to one evaluation, compare, report."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

import fewstep
from fewstep import recipes
from fewstep.distill import TrajectoryRegression
from fewstep.report_folder import report_folder
from fewstep.train.fit import instantiate
from fewstep.train.shell import Shell
from fewstep.train.stage import Trained, backward, run_stage
from fewstep_restoration.comparison import Comparison, compare, full_teacher
from fewstep_restoration.demo_report import build
from fewstep_restoration.super_resolver import SuperResolver

SHARE = {"teacher": 0.5, "student": 0.42}  # of the training time; the rest is the comparison


def run(args: argparse.Namespace) -> int:
    """The whole demo; the report folder appears only when everything is in it."""
    out, start, console = Path(args.out), time.perf_counter(), Console(stderr=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    with report_folder(out) as work:
        data = [f"--data.init_args.seed={args.seed}"]
        data += [f"--data.init_args.folder={args.data}"] if args.data else []
        data += [f"--data.init_args.held_out={args.held_out}"] if args.held_out else []
        console.print(
            f"[bold]fewstep demo[/]: x4 super-resolution, about {args.minutes:g} minutes of training on {torch.get_num_threads()} threads"
        )
        teacher = _train("teacher", "restoration/resshift_small", data, args, work, console)
        source = f"--model.init_args.teacher.init_args.source={work / 'teacher'}"
        student = _train("student", "restoration/resshift_small_onestep", [*data, source], args, work, console)
        figures = compare(
            cast(SuperResolver, fewstep.load(work / "teacher")),
            cast(SuperResolver, fewstep.load(work / "student")),
            student.held_out,
            args.seed,
        )
        metrics = {
            "fewstep": fewstep.__version__,
            "seed": args.seed,
            "threads": torch.get_num_threads(),
            "data": args.data or "photographs of the scikit-image package",
            "held_out": student.held_out.names,
            "training": {"teacher": teacher.facts, "student": student.facts},
            "methods": figures.methods,
            "seconds": time.perf_counter() - start,
        }
        _write(work, metrics, figures, teacher, student)
    _summary(console, metrics, out)
    if args.json:
        print(json.dumps(metrics, indent=2))
    return 0


# --- training ---------------------------------------------------------------------------------------------------------


def _train(
    name: str, recipe: str, overrides: Sequence[str], args: argparse.Namespace, work: Path, console: Console
) -> Trained:
    """Run a shipped recipe within its share of the time; leaves the artifact in work/name."""
    runs, file = work / f"{name}-run", recipes.find(recipe)
    options = [
        *overrides,
        f"--model.init_args.seed={args.seed}",
        f"--trainer.default_root_dir={runs}",
        "--trainer.logger=false",
    ]
    with console.status(f"{name}: measuring this machine"):
        precision, pace = _pace(file, options)
    iterations = max(20, int(args.minutes * 60 * SHARE[name] / pace))
    options += [
        f"--model.init_args.iterations={iterations}",
        f"--trainer.precision={precision}",
        "--trainer.log_every_n_steps=10",
    ]
    cli = instantiate(file, [*options, f"--trainer.val_check_interval={-(-iterations // 5)}"])
    facts, curves = run_stage(cli, work / name)
    facts |= {"recipe": recipe, "precision": precision, "photographs": cli.datamodule.train.names}
    return Trained(facts, curves, cli.datamodule.val)


def _pace(recipe: Path, options: Sequence[str]) -> tuple[str, float]:
    """The faster of float32 and bfloat16 autocast here (CPUs differ by a factor of five), and its seconds per iteration."""
    cli = instantiate(recipe, [*options, "--model.init_args.iterations=1"])
    shell: Shell = cli.model
    cli.datamodule.setup("fit")
    batches = iter(cli.datamodule.train_dataloader())
    warm, batch = next(batches), next(batches)
    if isinstance(shell, TrajectoryRegression):
        # The steady state: a full ring, to which each iteration adds a few pairs.
        shell.pool.size = len(batch["lr"])
    paces = {}
    for precision, dtype in (("32-true", None), ("bf16-mixed", torch.bfloat16)):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            backward(shell, warm)
            start = time.perf_counter()
            for _ in range(3):
                backward(shell, batch)
        paces[precision] = (time.perf_counter() - start) / 3
    best = min(paces, key=lambda k: paces[k])
    return best, 1.1 * paces[best]  # optimiser, averaging and data loading


# --- report -----------------------------------------------------------------------------------------------------------


def _write(folder: Path, metrics: dict[str, Any], figures: Comparison, teacher: Trained, student: Trained) -> None:
    """metrics.json, pictures/*.png and index.html."""
    from PIL import Image

    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (folder / "pictures").mkdir()
    for name, images in figures.pictures.items():
        for method, pixels in images.items():
            Image.fromarray(pixels).save(folder / "pictures" / f"{name}-{method.replace(' ', '-')}.png")
    build(metrics, figures, teacher, student).write(folder / "index.html")


def _summary(console: Console, metrics: dict[str, Any], out: Path) -> None:
    m = metrics["methods"]
    one, full, untaught = m["student 1"], m[full_teacher(m)], m["teacher 1"]
    console.print(
        f"[bold]student, 1 evaluation[/]: {full['seconds'] / one['seconds']:.1f}x faster than {full_teacher(m)}; agreement with it {one['agreement']:.2f} dB "
        f"({untaught['agreement']:.2f} before); PSNR-Y {one['psnr_y']:.2f} dB (teacher {full['psnr_y']:.2f}, bicubic {m['bicubic']['psnr_y']:.2f})"
    )
    console.print(f"report: {out / 'index.html'}   try: fewstep upscale PHOTO OUT.png --model {out / 'student'}")
