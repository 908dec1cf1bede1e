"""`fewstep demo 3d`: a multi-view teacher of six procedural shapes, and a one-step student that makes meshes of them; a report."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import fewstep
from fewstep import recipes
from fewstep.command import UsageError
from fewstep.report import Report
from fewstep.report_folder import report_folder
from fewstep.train.fit import instantiate
from fewstep.train.stage import pace, run_stage
from fewstep_3d.bench.classes import carving_system, judged, reference, student_system
from fewstep_3d.mesh_files import normalised, write_mesh
from fewstep_3d.mesh_views import mesh_views
from fewstep_3d.multi_view import pretrained_views
from fewstep_3d.shapes import SHAPES
from fewstep_3d.triplane_generator import TriplaneGenerator
from fewstep_3d.turntable import pictures, turn, write_film

SHARE = {"teacher": 0.55, "student": 0.4}  # of the training time; the rest is the comparison
RECIPES = {"teacher": "shapes_teacher", "student": "shapes_sds"}


def run(args: argparse.Namespace) -> int:
    """The whole demo; the report folder appears only when everything is in it."""
    out, start, console = Path(args.out), time.perf_counter(), Console(stderr=True)
    if args.data or args.held_out:
        raise UsageError("the 3d demo makes its own data: it takes no --data and no --held-out")
    if args.threads:
        torch.set_num_threads(args.threads)
    with report_folder(out) as work:
        facts = {name: _train(name, args, work, console) for name in ("teacher", "student")}
        metrics = _report(work, args.seed, facts, time.perf_counter() - start)
    console.print(f"report: {out / 'index.html'}   try: fewstep mesh chair chair.glb --model {out / 'student'}")
    if args.json:
        print(json.dumps(metrics, indent=2))
    return 0


def _train(name: str, args: argparse.Namespace, work: Path, console: Console) -> dict[str, Any]:
    """Run a shipped recipe within its share of the time; leaves the artifact in work/name."""
    runs, file = work / f"{name}-run", recipes.find(f"3d/{RECIPES[name]}")
    options = [f"--model.init_args.seed={args.seed}", f"--trainer.default_root_dir={runs}", "--trainer.logger=false"]
    if name == "student":
        options.append(f"--model.init_args.teacher.init_args.source={work / 'teacher'}")
    began = time.perf_counter()
    with console.status(f"{name}: rendering data and measuring this machine"):
        seconds = pace(instantiate(file, [*options, "--model.init_args.iterations=1"]))
    left = args.minutes * 60 * SHARE[name] - (time.perf_counter() - began)
    iterations = max(20, int(left / seconds))
    console.print(f"{name}: {iterations} iterations")
    options += [f"--model.init_args.iterations={iterations}", f"--trainer.val_check_interval={-(-iterations // 4)}"]
    cli = instantiate(file, options)
    facts, _ = run_stage(cli, work / name)
    return facts | {"recipe": f"3d/{RECIPES[name]}"}


def _report(work: Path, seed: int, facts: dict[str, Any], seconds: float) -> dict[str, Any]:
    """meshes/*.glb, turntables/*.gif, metrics.json and index.html."""
    teacher, student = pretrained_views(str(work / "teacher")), fewstep.load(work / "student")
    assert isinstance(student, TriplaneGenerator)
    ref = reference(24, 28)
    own, hull = student_system(student.eval(), 1, 28), carving_system(teacher, 20, 28)
    rows = {
        "student, 1 step": judged(own, ref, 4, seed, work),
        "teacher, 20 steps, carved": judged(hull, ref, 2, seed, work),
    }
    metrics = {"fewstep": fewstep.__version__, "seed": seed, "training": facts, "methods": rows, "seconds": seconds}
    (work / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (work / "turntables").mkdir()
    gallery = []
    fields = student({"label": torch.arange(len(SHAPES))}, 1, torch.Generator().manual_seed(seed), 64)
    for name, mesh in zip(SHAPES, student.meshes(fields), strict=True):
        if mesh is None:
            continue
        write_mesh(work / "meshes" / f"{name}.glb", mesh)
        frames = pictures(mesh_views(normalised(mesh), turn(16, 20.0, 128)))
        write_film(work / "turntables" / f"{name}.gif", frames)
        gallery.append((name, (frames[2].clamp(0, 1) * 255).round().byte().numpy()))
    report = Report(
        "Meshes in one evaluation", "A four-view teacher of six procedural shapes, distilled through a renderer."
    )
    one, full = rows.values()
    report.headline(
        [
            (f"{one['iou']:.2f}", "mean best IoU in one step", f"teacher, 20 steps and carving: {full['iou']:.2f}"),
            (f"{full['seconds'] / one['seconds']:.0f}x", "faster", f"{one['seconds']:.3f} s an object to glb"),
            (f"{one['watertight']:.0%}", "watertight", f"nearest class right: {one['nearest']:.0%}"),
        ]
    )
    report.gallery("One sample of every class", gallery, zoom=2)
    columns = ("", "IoU", "worst class", "nearest", "Chamfer-L1", "seconds")
    numbers = [
        (
            k,
            *(
                f"{r[c]:.3f}" if r[c] is not None else "-"
                for c in ("iou", "worst_class", "nearest", "chamfer_l1", "seconds")
            ),
        )
        for k, r in rows.items()
    ]
    report.table("Figures", columns, numbers)
    trained = [f"{k}: {v['iterations']} iterations of {v['recipe']}, {v['seconds']:.0f} s." for k, v in facts.items()]
    report.text("How it was made", [*trained, f"One seed ({seed}), {torch.get_num_threads()} CPU threads."])
    report.write(work / "index.html")
    return metrics
