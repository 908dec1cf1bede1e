"""`python -m fewstep_3d.bench.turns ARTIFACT ... --out FILE.gif|mp4|png`: turntables of students of classes beside each other, and of a member.

A column is a class; the first row is a member of it, then every artifact has `objects` rows, each of its own noise. A png is one look at
all of them (the first frame).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import trimesh

from fewstep.whole_file import whole
from fewstep_3d.fields import Grid
from fewstep_3d.generate import loaded
from fewstep_3d.mesh_views import mesh_views
from fewstep_3d.meshes import extracted, largest
from fewstep_3d.shapes import SHAPES, members
from fewstep_3d.turntable import pictures, turn, write_film


def rows(artifacts: Sequence[str], objects: int, side: int, seed: int) -> list[list[trimesh.Trimesh]]:
    """Meshes of all classes: members, then `objects` rows of each artifact.

    Args:
        objects: rows of each artifact; side: corners of the grid along each axis.
    Raises:
        ArtifactError: no student there; FieldError: an object without a surface.
    """
    generator = torch.Generator().manual_seed(seed)
    found = [[extracted(Grid(members(name, 1, side, generator)[:, None])) for name in SHAPES]]
    for artifact in artifacts:
        model = loaded(artifact)
        label = torch.arange(len(SHAPES)).repeat(objects)
        with torch.no_grad():
            fields = model.eval()({"label": label}, model.steps, generator, side)
        meshes = [largest(extracted(Grid(values[None]))) for values in fields.values]
        found += [meshes[i : i + len(SHAPES)] for i in range(0, len(meshes), len(SHAPES))]
    return found


def shown(
    table: list[list[trimesh.Trimesh]],
    file: Path,
    frames: int = 24,
    elevation: float = 25.0,
    size: int = 96,
    channels: str = "shaded",
) -> None:
    """Write rows of meshes that turn together as gif or mp4, or one look at them as png, whole or not at all."""
    still = file.suffix.lower() == ".png"
    cameras = turn(1 if still else frames, elevation, size)
    looks = torch.cat([torch.cat([pictures(mesh_views(m, cameras), channels) for m in row], 2) for row in table], 1)
    if not still:
        write_film(file, looks)
        return
    import imageio.v3 as iio

    image = (looks[0].clamp(0, 1) * 255).round().byte().numpy()
    with whole(file) as part:
        part.write_bytes(iio.imwrite("<bytes>", np.ascontiguousarray(image), extension=".png") or b"")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the meshes and write the film."""
    parser = argparse.ArgumentParser(prog="python -m fewstep_3d.bench.turns", description=__doc__)
    parser.add_argument("artifacts", nargs="+", metavar="ARTIFACT")
    parser.add_argument("--objects", type=int, default=2, help="rows of each artifact (default: %(default)s)")
    parser.add_argument("--side", type=int, default=48, help="corners of the grid along each axis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, default=96, help="pixels of an object")
    parser.add_argument("--elevation", type=float, default=25.0)
    parser.add_argument("--channels", choices=("shaded", "normal"), default="shaded")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args(argv)
    table = rows(args.artifacts, args.objects, args.side, args.seed)
    shown(table, args.out, args.frames, args.elevation, args.size, args.channels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
