"""`python -m fewstep_3d.bench.classes`: classes to meshes by few-step students, against their teacher and against carving.

Students are those of recipes/3d, each trained in DIR/SEED/RECIPE after its teacher, of the length of its recipe, or with --seconds all of the
length that takes so many CPU seconds (by a trial of a few iterations; schedules run to their end). Finished trainings and rows lie in DIR and
are not made again, and a training goes on from its checkpoint, so that an interrupted bench goes on.

    student, untrained   the sphere that all begin at
    students             at their own number of steps, and K-step ones at 1, 2, 4
    teacher + carving    samples of 20 steps, the hull of their silhouettes

Figures over `per_class` objects of each class: best IoU with `members` members of the class on a grid of `side` corners, its mean, of
classes and of the worst; share whose nearest member is of the class; Chamfer-L1 to the best member, and the floor of its sampling;
watertight share; diversity (mean of 1 - IoU over pairs of a class) and that of members; seconds per object from noise to glb.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import trimesh
from torch import Tensor

from fewstep import recipes
from fewstep.bench.timing import machine, write
from fewstep.bench.trainings import cost, seeded, trained
from fewstep.train.stage import pace
from fewstep_3d.carving import carved
from fewstep_3d.fields import FieldError, Grid
from fewstep_3d.mesh_files import write_mesh
from fewstep_3d.meshes import extracted, largest
from fewstep_3d.metrics import distances, diversity, pairwise_iou, surface_samples
from fewstep_3d.multi_view import MultiViewGenerator, masks, pretrained_views
from fewstep_3d.shapes import SHAPES, members
from fewstep_3d.triplane_generator import TriplaneGenerator

STUDENTS = tuple(
    f"shapes_{n}" for n in ("anchored", "members", "sds", "csd", "asd", "vsd", "dmd", "sim", "prd2", "prd4")
)
STEPS = {"shapes_prd2": (1, 2, 4), "shapes_prd4": (1, 2, 4)}
POINTS = 10_000

# (labels (N,), generator) -> fields of N objects.
System = Callable[[Tensor, torch.Generator], Grid]


def affordable(recipe: str, seed: int, folder: Path, seconds: float, options: Sequence[str]) -> int:
    """Iterations of a recipe whose teacher is trained that fit into so many CPU seconds, by a trial of 20; the same whenever it is asked again."""
    from fewstep.train.fit import instantiate

    place = folder / str(seed) / recipe
    plan = place / "plan.json"
    if not plan.is_file():
        place.mkdir(parents=True, exist_ok=True)
        (place / "recipe.yaml").write_text(
            recipes.find(f"3d/{recipe}").read_text().replace("runs/", f"{place.parent}/")
        )
        each = pace(instantiate(place / "recipe.yaml", [*seeded(seed), *options]), time.process_time, 20)
        plan.write_text(json.dumps({"seconds": seconds, "each": each, "iterations": max(1, round(seconds / each))}))
    return json.loads(plan.read_text())["iterations"]


def student(recipe: str, seed: int, folder: Path, seconds: float | None, options: Sequence[str]) -> Path:
    """The folder of a trained student, of its recipe's length or of one that takes so many CPU seconds."""
    trained("3d/shapes_teacher", seed, folder, options)
    if seconds is not None and not (folder / str(seed) / recipe / "last").is_dir():
        count = affordable(recipe, seed, folder, seconds, options)
        options = [*options, f"--model.init_args.iterations={count}"]
    return trained(f"3d/{recipe}", seed, folder, options)


class Reference(NamedTuple):
    """Members of all classes: insides (classes, M, G, G, G), and their diversity (classes,)."""

    inside: Tensor
    sdf: Tensor
    diversity: list[float]


def reference(count: int, side: int) -> Reference:
    """Drawn with a seed of their own, the same for all systems and seeds."""
    generator = torch.Generator().manual_seed(12345)
    sdf = torch.stack([members(name, count, side, generator) for name in SHAPES])
    return Reference(sdf < 0, sdf, [diversity(x < 0) for x in sdf])


def judged(system: System, ref: Reference, per_class: int, seed: int, folder: Path) -> dict[str, Any]:
    """The figures of a system."""
    label = torch.arange(len(SHAPES)).repeat_interleave(per_class)
    with torch.no_grad():
        fields = system(label, torch.Generator().manual_seed(seed))
    own = fields.values[:, 0] < 0
    table = torch.stack([pairwise_iou(own, group) for group in ref.inside], 1)  # (N, classes, M)
    best = table.amax(2)
    mine = best.gather(1, label[:, None])[:, 0]
    closest = table[torch.arange(len(label)), label].argmax(1)
    chamfer, floor, closed = [], [], []
    for i, values in enumerate(fields.values):
        try:
            mesh = largest(extracted(Grid(values[None])))
        except FieldError:
            closed.append(False)
            chamfer.append(float("nan"))
            continue
        other = extracted(Grid(ref.sdf[label[i], closest[i]][None, None]))
        target = surface_samples(other, POINTS, 1)
        chamfer.append(distances(surface_samples(mesh, POINTS), target).chamfer_l1)
        floor.append(distances(surface_samples(other, POINTS, 2), target).chamfer_l1)
        closed.append(bool(mesh.is_watertight))
    classes = mine.view(len(SHAPES), -1).mean(1)
    return {
        "iou": float(mine.mean()),
        "iou_of_classes": dict(zip(SHAPES, classes.tolist(), strict=True)),
        "worst_class": float(classes.min()),
        "nearest": float((best.argmax(1) == label).double().mean()),
        "chamfer_l1": float(np.nanmean(chamfer)) if np.isfinite(chamfer).any() else None,
        "chamfer_floor": float(np.mean(floor)) if floor else None,
        "watertight": float(np.mean(closed)),
        "diversity": [diversity(x) for x in own.unflatten(0, (len(SHAPES), -1))],
        "seconds": seconds_per_object(system, folder),
    }


def seconds_per_object(system: System, folder: Path, objects: int = 6) -> float:
    """From noise to a glb on disk, one object at a time; the best of three rounds, CPU seconds."""
    times = []
    for _ in range(3):
        start = time.process_time()
        for i in range(objects):
            with torch.no_grad():
                fields = system(torch.tensor([i % len(SHAPES)]), torch.Generator().manual_seed(i))
            try:
                mesh = largest(extracted(fields))
            except FieldError:
                mesh = trimesh.creation.box((1, 1, 1))
            write_mesh(folder / "timed.glb", mesh)
        times.append((time.process_time() - start) / objects)
    (folder / "timed.glb").unlink()
    return min(times)


def student_system(model: TriplaneGenerator, steps: int, side: int) -> System:
    """The student's fields."""
    return lambda label, generator: model({"label": label}, steps, generator, side)


def carving_system(model: MultiViewGenerator, steps: int, side: int) -> System:
    """The hulls of the teacher's samples, from one rig each."""

    def system(label: Tensor, generator: torch.Generator) -> Grid:
        """The teacher's samples from one random rig an object, carved."""
        n = len(label)
        cameras = model.rig.draw(n, generator)
        cond = {"label": label, "camera": model.rig.told(cameras)}
        noise = torch.randn(n, *(model.shape or ()), generator=generator)
        mask = masks(model.generate(noise, cond, steps=steps))
        v = model.rig.views
        hulls = [carved(cameras[slice(v * i, v * i + v)], mask[i], side, smooth=1).values for i in range(n)]
        return Grid(torch.cat(hulls))

    return system


def systems(
    seed: int, folder: Path, names: Sequence[str], side: int, seconds: float | None, options: Sequence[str]
) -> dict[str, System]:
    """Name -> system, trained where needed."""
    import fewstep

    teacher = pretrained_views(str(trained("3d/shapes_teacher", seed, folder, options) / "last"))
    found: dict[str, System] = {"teacher 20 steps, carved": carving_system(teacher, 20, side)}
    for name in names:
        model = fewstep.load(student(name, seed, folder, seconds, options) / "last")
        assert isinstance(model, TriplaneGenerator)
        for steps in STEPS.get(name, (1,)):
            found[f"{name}, {steps} step{'s' * (steps > 1)}"] = student_system(model.eval(), steps, side)
    return found | {"sphere": lambda label, generator: ball(len(label), side)}


def ball(count: int, side: int, radius: float = 0.5) -> Grid:
    """The shape that students begin at."""
    from fewstep_3d.fields import Sphere, tabulated

    return Grid(tabulated(Sphere(radius, ()), side, torch.zeros(())).values.expand(count, -1, -1, -1, -1))


def main(argv: Sequence[str] | None = None) -> int:
    """Train and judge what is missing, and print all rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m fewstep_3d.bench.classes", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--per-class", type=int, default=12)
    parser.add_argument("--members", type=int, default=48)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--seconds", type=float, help="CPU seconds of every student's training (default: its recipe's)")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_classes"), metavar="DIR")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION", help="options of all trainings, without --")
    parser.add_argument("--out", metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    ref, found = reference(args.members, args.side), []
    options = [f"--{option}" for option in args.set]
    for seed in args.seeds:
        (args.folder / str(seed)).mkdir(parents=True, exist_ok=True)
        for name, system in systems(seed, args.folder, args.systems, args.side, args.seconds, options).items():
            file = args.folder / str(seed) / f"{re.sub(r'[ ,]+', '_', name)}.json"
            if not file.is_file():
                row = judged(system, ref, args.per_class, seed, args.folder / str(seed))
                place = args.folder / str(seed) / ("shapes_teacher" if "carved" in name else name.split(",")[0])
                row |= {"training": cost(place)} if place.is_dir() else {}
                file.write_text(json.dumps({"system": name, "seed": seed} | row, indent=2))
            found.append(json.loads(file.read_text()))
            sys.stderr.write(f"seed {seed} {name}: IoU {found[-1]['iou']:.3f}, nearest {found[-1]['nearest']:.2f}\n")
    table = {"bench": "classes", **machine(), "objects": len(SHAPES) * args.per_class, "side": args.side}
    write(table | {"diversity_of_members": ref.diversity, "rows": found}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
