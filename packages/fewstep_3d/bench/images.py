"""`python -m fewstep_3d.bench.images --meshes DIR`: pictures to meshes, by a one-step student of a multi-view teacher of the meshes of a folder.

Teacher and student are recipes/3d/meshes_teacher and meshes_sds, trained in DIR/SEED/RECIPE unless they are there; a training goes on from
its checkpoint. Every mesh is seen from `views` held-out sides: azimuths and elevations of other draws than training's, which are continuous.

    student           one step from noise and picture
    teacher, carved   samples of 20 steps told the picture, the hull of their silhouettes

IoU with the mesh itself on the grid of the data, not aligned; share of pictures whose nearest mesh is the right one; Chamfer-L1 to the mesh in
the cube, and the floor of its sampling; watertight share; CPU seconds from picture to surface. `iou_between_meshes`: how far they are apart.
--film: the meshes turn in the first row, then the students' of every seed, each from the first held-out side.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import trimesh
from torch import Tensor

import fewstep
from fewstep.bench.timing import machine, write
from fewstep.bench.trainings import cost, trained
from fewstep_3d.bench.turns import shown
from fewstep_3d.carving import carved
from fewstep_3d.fields import FieldError, Grid
from fewstep_3d.meshes import extracted, largest
from fewstep_3d.metrics import distances, pairwise_iou, surface_samples
from fewstep_3d.multi_view import masks, pretrained_views
from fewstep_3d.shape_data import ShapeViews
from fewstep_3d.triplane_generator import TriplaneGenerator

POINTS, STUDENT = 10_000, "meshes_sds, 1 step"

# (pictures (N, 4, h, w), generator) -> fields of N objects.
System = Callable[[Tensor, torch.Generator], Grid]


class Seen(NamedTuple):
    """Pictures (meshes, views, 4, h, w) of meshes with these names and signed distances (meshes, 1, G, G, G)."""

    names: tuple[str, ...]
    sdf: Tensor
    image: Tensor


def seen(meshes: Path, y_up: bool, views: int, side: int) -> Seen:
    """The meshes of a folder from so many sides, the same for all systems and seeds."""
    data, generator = (
        ShapeViews(meshes=str(meshes), y_up=y_up, per_class=1, side=side, images=True),
        torch.Generator().manual_seed(12345),
    )
    names, fixed = data.sources
    image = [data.looked_at(fixed[n].expand(views, -1, -1, -1), i, generator)["image"] for i, n in enumerate(names)]
    return Seen(names, torch.stack([fixed[n] for n in names]), torch.stack(image))


def judged(system: System, ref: Seen, seed: int) -> dict[str, Any]:
    """The figures of a system, mesh by mesh."""
    count, views = ref.image.shape[:2]
    with torch.no_grad():
        start = time.process_time()
        generator = torch.Generator().manual_seed(seed)
        fields = torch.cat([system(image, generator).values for image in ref.image])
    seconds = time.process_time() - start
    table = pairwise_iou(fields[:, 0] < 0, ref.sdf[:, 0] < 0)  # (meshes x views, meshes)
    label = torch.arange(count).repeat_interleave(views)
    iou = table.gather(1, label[:, None])[:, 0].view(count, views)
    targets = [surface_samples(extracted(Grid(sdf[None])), POINTS, 1) for sdf in ref.sdf]
    floors = [
        distances(surface_samples(extracted(Grid(s[None])), POINTS, 2), t)
        for s, t in zip(ref.sdf, targets, strict=True)
    ]
    chamfer, closed = [], []
    for i, values in enumerate(fields):
        start = time.process_time()
        try:
            mesh = largest(extracted(Grid(values[None])))
        except FieldError:
            closed.append(False)
            continue
        seconds += time.process_time() - start
        chamfer.append(distances(surface_samples(mesh, POINTS), targets[int(label[i])]).chamfer_l1)
        closed.append(bool(mesh.is_watertight))
    return {
        "iou": float(iou.mean()),
        "iou_of_meshes": dict(zip(ref.names, iou.mean(1).tolist(), strict=True)),
        "iou_of_views": iou.tolist(),
        "nearest": float((table.argmax(1) == label).double().mean()),
        "chamfer_l1": float(np.mean(chamfer)) if chamfer else None,
        "chamfer_floor": float(np.mean([f.chamfer_l1 for f in floors])),
        "watertight": float(np.mean(closed)),
        "seconds": seconds / len(fields),
    }


@torch.no_grad()
def made(students: Sequence[System], ref: Seen) -> list[list[trimesh.Trimesh]]:
    """The meshes, and what every student makes of their first pictures. Raises FieldError where that has no surface."""
    fields = [ref.sdf, *(student(ref.image[:, 0], torch.Generator().manual_seed(0)).values for student in students)]
    return [[largest(extracted(Grid(values[None]))) for values in row] for row in fields]


def systems(seed: int, folder: Path, side: int, options: Sequence[str]) -> dict[str, System]:
    """Name -> system, trained where needed."""
    model = fewstep.load(trained("3d/meshes_sds", seed, folder, options) / "last")
    teacher = pretrained_views(str(folder / str(seed) / "meshes_teacher" / "last"))
    assert isinstance(model, TriplaneGenerator)
    student = model.eval()

    def hull(image: Tensor, generator: torch.Generator) -> Grid:
        """The teacher's samples from one random rig an object, carved."""
        n, v = len(image), teacher.rig.views
        cameras = teacher.rig.draw(n, generator)
        noise = torch.randn(n, *(teacher.shape or ()), generator=generator)
        mask = masks(teacher.generate(noise, {"image": image, "camera": teacher.rig.told(cameras)}, steps=20))
        hulls = [carved(cameras[slice(v * i, v * i + v)], mask[i], side, smooth=1).values for i in range(n)]
        return Grid(torch.cat(hulls))

    return {
        STUDENT: lambda image, generator: student({"image": image}, 1, generator, side),
        "teacher 20 steps, carved": hull,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train and judge what is missing, and print all rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m fewstep_3d.bench.images", description=__doc__)
    parser.add_argument("--meshes", type=Path, required=True, metavar="DIR", help="a folder of watertight meshes")
    parser.add_argument("--y-up", action="store_true", help="the meshes stand along y")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_images"), metavar="DIR")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION", help="options of all trainings, without --")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--film", type=Path, metavar="FILE.gif|mp4|png")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    ref, rows = seen(args.meshes, args.y_up, args.views, args.side), []
    data = [f"--data.init_args.meshes={args.meshes}", f"--data.init_args.y_up={str(args.y_up).lower()}"]
    options = [*data, *(f"--{option}" for option in args.set)]
    for seed in args.seeds:
        for name, system in systems(seed, args.folder, args.side, options).items():
            place = args.folder / str(seed) / ("meshes_teacher" if "carved" in name else "meshes_sds")
            rows.append({"system": name, "seed": seed} | judged(system, ref, seed) | {"training": cost(place)})
            sys.stderr.write(f"seed {seed} {name}: IoU {rows[-1]['iou']:.3f}, nearest {rows[-1]['nearest']:.2f}\n")
    inside = ref.sdf[:, 0] < 0
    apart = pairwise_iou(inside, inside).tolist()
    table = {"bench": "images", **machine(), "meshes": list(ref.names), "views": args.views, "side": args.side}
    write(table | {"iou_between_meshes": apart, "rows": rows}, args.out)
    if args.film:
        students = [systems(seed, args.folder, args.side, options)[STUDENT] for seed in args.seeds]
        shown(made(students, ref), args.film)
    return 0


if __name__ == "__main__":
    sys.exit(main())
