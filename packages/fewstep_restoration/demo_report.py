"""The page that `fewstep demo restoration` writes."""

from typing import Any

from fewstep.report import Curve, Report
from fewstep.train.stage import Trained
from fewstep_restoration.comparison import EVALUATIONS, Comparison, full_teacher


def build(metrics: dict[str, Any], figures: Comparison, teacher: Trained, student: Trained) -> Report:
    """Headline, pictures, quality against evaluations, training curves, all figures, how it was made."""
    report = Report(
        "One evaluation instead of fifteen",
        "A ResShift teacher for x4 super-resolution, distilled to a one-step student on this machine.",
    )
    _headline(report, metrics)
    _pictures(report, figures)
    _quality(report, figures.methods)
    _training(report, teacher, student)
    _table(report, figures.methods)
    facts = [_facts(name, t.facts) for name, t in (("Teacher", teacher), ("Student", student))]
    held_out = f"Held out: {', '.join(metrics['held_out'])}. Data: {metrics['data']}. One seed ({metrics['seed']})."
    report.text("How it was made", [*facts, held_out])
    return report


def _headline(report: Report, metrics: dict[str, Any]) -> None:
    m = metrics["methods"]
    one, full, untaught = m["student 1"], m[full_teacher(m)], m["teacher 1"]
    speed = f"{one['seconds']:.2f} s a photograph instead of {full['seconds']:.2f} s"
    report.headline(
        [
            (f"{full['seconds'] / one['seconds']:.1f}x", "faster", speed),
            (
                f"{one['agreement']:.1f} dB",
                "agreement with the teacher",
                f"{untaught['agreement']:.1f} dB before distillation",
            ),
            (
                f"{one['psnr_y'] - full['psnr_y']:+.2f} dB",
                "PSNR-Y against the teacher's samples",
                f"{one['psnr_y']:.2f} and {full['psnr_y']:.2f} dB",
            ),
            (
                f"{metrics['seconds'] / 60:.1f} min",
                "all of it",
                f"{metrics['threads']} CPU threads, seed {metrics['seed']}",
            ),
        ]
    )


def _pictures(report: Report, figures: Comparison) -> None:
    for name, images in figures.pictures.items():
        before, after = (
            ("bicubic enlargement of the input", images["bicubic"]),
            ("student, one evaluation", images["student 1"]),
        )
        report.compare(f"{name}: input and student", before, after)
        crops = [(method, detail(image, images["original"])) for method, image in images.items()]
        report.gallery(f"{name}: the most detailed part", crops, note="The same crop of every method.", zoom=2)


def _quality(report: Report, m: dict[str, dict[str, float]]) -> None:
    mean = "One evaluation of the teacher is the mean of all plausible pictures: high PSNR, little detail. Its samples trade PSNR for detail."
    agreement = "RGB PSNR between an output and the teacher's full trajectory from the same noise."
    for key, label, note in (
        ("psnr_y", "PSNR-Y (dB)", mean),
        ("agreement", "agreement with the full teacher (dB)", agreement),
    ):
        steps = [n for n in EVALUATIONS if key in m.get(f"teacher {n}", {})]
        curve = Curve("teacher", steps, [m[f"teacher {n}"][key] for n in steps])
        dot = Curve("student", [1], [m["student 1"][key]], style="markers")
        heading, levels = f"{label} against network evaluations", {"bicubic": m["bicubic"][key]}
        report.curves(heading, [curve, dot], "network evaluations", label, note=note, levels=levels)


def _training(report: Report, teacher: Trained, student: Trained) -> None:
    for name, stage, term in (("Teacher", teacher, "denoising"), ("Student", student, "distill")):
        curve = Curve(term, *_smooth(*stage.curves[f"train/{term}"]))
        report.curves(f"{name}: training loss", [curve], "iteration", "loss (running mean)", log_y=True)
    agreement = Curve("student", *student.curves["val/agreement"])
    report.curves("Agreement while the student trains", [agreement], "iteration", "dB, in the space of the path")


def _table(report: Report, m: dict[str, dict[str, float]]) -> None:
    columns = ["method", "PSNR-Y", "SSIM-Y", "GMSD", "detail ratio", "agreement", "seconds"]
    keys = ("psnr_y", "ssim_y", "gmsd", "laplacian_ratio", "agreement", "seconds")
    rows = [[name, *(f"{v[k]:.3f}" if k in v else "" for k in keys)] for name, v in m.items()]
    note = (
        "Means over the held-out photographs; the number behind a method is its evaluations. "
        "Detail ratio: mean |Laplacian| relative to the original (1 is right)."
    )
    report.table("All figures", columns, rows, note=note, emphasise=len(rows) - 1)


def _facts(name: str, f: dict[str, Any]) -> str:
    return (
        f"{name}: recipe {f['recipe']}, {f['parameters']:,} parameters, {f['iterations']} iterations ({f['precision']}) in "
        f"{f['seconds']:.0f} s ({f['cpu_seconds']:.0f} CPU seconds) on {', '.join(f['photographs'][:12])}"
    )


def detail(pixels: Any, original: Any, side: int = 96) -> Any:
    """The crop of `pixels` where the original varies most."""
    luma = original.astype(float).mean(-1)
    busy = abs(luma[1:, 1:] - luma[:-1, 1:]) + abs(luma[1:, 1:] - luma[1:, :-1])
    corners = [
        (i, j) for i in range(0, max(1, len(luma) - side), 16) for j in range(0, max(1, len(luma[0]) - side), 16)
    ]
    i, j = max(corners, key=lambda at: busy[at[0] : at[0] + side, at[1] : at[1] + side].sum())
    return pixels[i : i + side, j : j + side]


def _smooth(x: list[float], y: list[float], width: int = 9) -> tuple[list[float], list[float]]:
    """Running mean over `width` log points."""
    windows = [y[max(0, i - width + 1) : i + 1] for i in range(len(y))]
    return x, [sum(w) / len(w) for w in windows]
