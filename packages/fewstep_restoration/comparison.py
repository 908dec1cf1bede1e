"""Teacher, student and bicubic side by side on whole photographs, each from the same noise.

python -m fewstep_restoration.comparison TEACHER STUDENT FOLDER [--posterior 8] [--out FILE.json]
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

import fewstep
from fewstep.artifacts import read_config
from fewstep.metrics import psnr_rgb, psnr_y, ssim_y
from fewstep.solvers import UnitGainAncestral
from fewstep.train.progress import bar
from fewstep_restoration.images import list_photos
from fewstep_restoration.metrics import RandomFeatureDistance, gmsd, laplacian_ratio
from fewstep_restoration.photos import PhotoPairs
from fewstep_restoration.super_resolver import SuperResolver

EVALUATIONS = (1, 2, 3, 5, 8, 15)


@dataclass
class Comparison:
    """methods: method -> mean figures over the photographs; pictures: photograph -> method -> (H, W, 3) uint8."""

    methods: dict[str, dict[str, float]]
    pictures: dict[str, dict[str, Any]]


def compare(
    teacher: SuperResolver,
    student: SuperResolver,
    held_out: PhotoPairs,
    seed: int,
    evaluations: Sequence[int] = EVALUATIONS,
    posterior: int = 0,
    keep: bool = True,
) -> Comparison:
    """Bicubic, the teacher at several numbers of evaluations and the student, from the same noise per photograph.

    psnr_y, ssim_y, gmsd, laplacian_ratio, random_features: against the original; agreement: RGB PSNR against the teacher's
    full trajectory; seconds: per photograph.

    Args:
        evaluations: of the teacher; 1 and its full number always.
        posterior: also this many stochastic samples of the teacher, one of them and their mean.
        keep: the pictures of the main methods.
    """
    scores: dict[str, list[dict[str, float]]] = {}
    pictures: dict[str, dict[str, Any]] = {}
    features, slow = RandomFeatureDistance(), f"teacher {teacher.steps}"
    with torch.no_grad(), bar() as progress:
        task = progress.add_task("comparing", total=len(held_out), figures="")
        for i, name in enumerate(held_out.names):
            pair = held_out.whole(i)
            hr = unit(pair["hr"][None])
            outputs = _outputs(teacher, student, pair["lr"][None], seed * 1000 + i, evaluations, posterior)
            for method, (image, seconds) in outputs.items():
                row = {
                    "psnr_y": psnr_y(image, hr, shave=teacher.scale),
                    "ssim_y": ssim_y(image, hr, shave=teacher.scale),
                    "gmsd": gmsd(image, hr),
                    "laplacian_ratio": laplacian_ratio(image, hr),
                    "random_features": features(image * 2 - 1, hr * 2 - 1),
                    "agreement": psnr_rgb(image, outputs[slow][0]),
                }
                scores.setdefault(method, []).append({k: v.item() for k, v in row.items()} | {"seconds": seconds})
            if keep:
                shown = {m: outputs[m][0] for m in ("bicubic", "teacher 1", slow, "student 1")} | {"original": hr}
                pictures[name] = {m: _pixels(v) for m, v in shown.items()}
            progress.update(task, advance=1, figures=name)
    means = {m: {k: sum(r[k] for r in rows) / len(rows) for k in rows[0]} for m, rows in scores.items()}
    del means[slow]["agreement"]  # with itself
    return Comparison(means, pictures)


def _outputs(
    teacher: SuperResolver, student: SuperResolver, lr: Tensor, seed: int, evaluations: Sequence[int], posterior: int
) -> dict[str, tuple[Tensor, float]]:
    """Method -> (image in [0, 1], seconds)."""
    noise = student.noise(lr, torch.Generator().manual_seed(seed))
    outputs = {"bicubic": (unit(teacher.anchor(lr, teacher.scale)), 0.0)}
    for n in sorted({1, *(n for n in evaluations if n <= teacher.steps), teacher.steps}):
        outputs[f"teacher {n}"] = _timed(teacher, lr, n, noise)
    outputs["student 1"] = _timed(student, lr, 1, noise)
    if posterior:
        generator = torch.Generator().manual_seed(seed)
        samples = torch.cat([teacher(lr, solver=UnitGainAncestral(), generator=generator) for _ in range(posterior)])
        outputs[f"posterior {teacher.steps}"] = unit(samples[:1]), 0.0
        outputs[f"mean of {posterior} posterior"] = unit(samples.mean(0, keepdim=True)), 0.0
    return outputs


def _timed(model: SuperResolver, lr: Tensor, steps: int, noise: Tensor) -> tuple[Tensor, float]:
    """(image in [0, 1], seconds): the faster of two runs, since the first one may still be setting up."""
    best, image = float("inf"), lr
    for _ in range(2):
        start = time.perf_counter()
        image = unit(model(lr, steps=steps, noise=noise))
        best = min(best, time.perf_counter() - start)
    return image, best


def full_teacher(methods: dict[str, Any]) -> str:
    """The teacher with most evaluations."""
    return max((m for m in methods if m.startswith("teacher")), key=lambda m: int(m.split()[1]))


def unit(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return ((x + 1) / 2).clamp(0, 1)


def _pixels(image: Tensor) -> Any:
    """(1, 3, H, W) in [0, 1] -> (H, W, 3) uint8 array."""
    return (image[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def main() -> None:
    """Print, and store where asked, the figures of two artifacts on a folder of photographs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("folder")
    parser.add_argument("--evaluations", type=int, nargs="*", default=EVALUATIONS)
    parser.add_argument("--posterior", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    teacher, student = (cast(SuperResolver, fewstep.load(p)) for p in (args.teacher, args.student))
    photos = PhotoPairs(list_photos(args.folder), teacher.scale)
    result = {
        "command": f"python -m fewstep_restoration.comparison TEACHER STUDENT {photos.paths[0].parent.name} --posterior {args.posterior} --seed {args.seed}",
        "photographs": len(photos),
        "seed": args.seed,
        "threads": args.threads,
        "training": {
            n: read_config(p)["provenance"] for n, p in (("teacher", args.teacher), ("student", args.student))
        },
        "methods": compare(teacher, student, photos, args.seed, args.evaluations, args.posterior, keep=False).methods,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        with open(args.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
