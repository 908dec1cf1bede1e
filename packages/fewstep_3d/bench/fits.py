"""`python -m fewstep_3d.bench.fits MESH ...`: triplanes fitted to pictures of meshes, against the meshes.

Each mesh is rendered from 36 views of 64 x 64 and 6 between them that are held out, as `fewstep mesh fit` does; figures are those of
`fewstep mesh eval --align`, the PSNR of the held-out views and the CPU seconds of fit and extraction.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.bench.timing import machine, write
from fewstep_3d.cameras import rig
from fewstep_3d.eval_verb import against
from fewstep_3d.fit_verb import split
from fewstep_3d.fitting import Fit, held_out_psnr
from fewstep_3d.mesh_files import normalised, read_mesh
from fewstep_3d.mesh_views import mesh_views
from fewstep_3d.meshes import largest
from fewstep_3d.scene import Scene
from fewstep_3d.triplane import TriplaneDecoder

VIEWS, HELD_OUT, SIZE, RESOLUTION, SAMPLES, SIDE = 36, 6, 64, 96, 100_000, 64


def fitted(file: Path, seed: int, y_up: bool, iterations: int) -> dict[str, Any]:
    """The figures of one fit."""
    reference = normalised(read_mesh(file, y_up))
    train, held_out = split(mesh_views(reference, rig(VIEWS + HELD_OUT, size=(SIZE, SIZE))), HELD_OUT)
    assert held_out is not None
    torch.manual_seed(seed)
    scene, fit = Scene(TriplaneDecoder(16, 32, 1), 64), Fit(iterations)
    start = time.process_time()
    fit(scene, train, seed)
    mesh = largest(scene.mesh(RESOLUTION))
    seconds = time.process_time() - start
    row = {"mesh": file.stem, "seed": seed, "cpu_seconds": seconds, **held_out_psnr(scene, held_out, fit)}
    return row | against(mesh, reference, True, SAMPLES, SIDE)


def main(argv: Sequence[str] | None = None) -> int:
    """All meshes and seeds."""
    parser = argparse.ArgumentParser(prog="python -m fewstep_3d.bench.fits", description=__doc__)
    parser.add_argument("meshes", type=Path, nargs="+", metavar="MESH")
    parser.add_argument("--y-up", action="store_true", help="the meshes stand along y")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--out", metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for file in args.meshes:
        for seed in args.seeds:
            rows.append(fitted(file, seed, args.y_up, args.iterations))
            sys.stderr.write(f"{rows[-1]}\n")
    write({"bench": "fits", **machine(), "views": VIEWS, "size": SIZE, "rows": rows}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
