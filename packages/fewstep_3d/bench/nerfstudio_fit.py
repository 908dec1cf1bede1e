"""`python -m fewstep_3d.bench.nerfstudio_fit MESH ...`: `ns-train fewstep-triplane` with its defaults on Blender-format sets of meshes.

Each mesh (obj files are taken as y-up) is coloured by place, rendered from 42 sides at 64 x 64 pixels, of which 6 are held out; trained in a
process of its own; exported by `fewstep mesh export --ns-config`; compared with the mesh. CPU seconds are those of that process, imports
included. PSNR is of the held-out pictures, before white.
"""

import argparse
import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from trimesh.visual import ColorVisuals

from fewstep.bench.timing import machine, write
from fewstep.cli import main as fewstep_main
from fewstep.command import UsageError
from fewstep_3d.cameras import rig
from fewstep_3d.mesh_files import normalised, read_mesh, write_mesh
from fewstep_3d.mesh_views import held_out, mesh_views
from fewstep_3d.transforms import write_views


def coloured(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """With vertex colours (1 + position) / 2."""
    out = mesh.copy()
    colours = (255 * (0.5 + 0.5 * out.vertices)).clip(0, 255).astype(np.uint8)
    out.visual = ColorVisuals(out, vertex_colors=colours)
    return out


def blender_set(mesh: trimesh.Trimesh, folder: Path, views: int, held: int, size: int) -> None:
    """transforms_train.json and transforms_test.json."""
    seen, judge = mesh_views(mesh, rig(views + held, size=(size, size)), 4), held_out(views + held, held)
    rest = torch.ones(views + held, dtype=torch.bool)
    rest[judge] = False
    write_views(folder, seen.some(rest.nonzero()[:, 0]))
    write_views(folder, seen.some(judge), "test")


def trained(data: Path, seed: int, parser: str, log: Path) -> tuple[Path, float]:
    """(config.yml, CPU seconds) of a run of ns-train with its defaults; parser: a further data parser's name, or none."""
    runs = data.parent / f"runs{seed}{parser}"
    given = ["--output-dir", str(runs), "--machine.seed", str(seed)]
    source = [parser, "--data", str(data)] if parser else ["--data", str(data)]
    command = [str(Path(sys.executable).with_name("ns-train")), "fewstep-triplane", *given, *source]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as out:
        if subprocess.run(command, check=False, stdout=out, stderr=subprocess.STDOUT).returncode:
            raise UsageError(f"ns-train failed: {log.read_text().splitlines()[-1]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (config,) = runs.glob("*/*/*/config.yml")
    return config, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def verb(*args: object) -> dict[str, Any]:
    """The JSON that a verb of fewstep prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        fewstep_main([*map(str, args), "--json"])
    return json.loads(out.getvalue())


def row(mesh: trimesh.Trimesh, seed: int, parser: str, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of one training."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blender_set(mesh, folder / "set", args.views, args.held_out, args.size)
        if parser:  # nerfstudio's own wants the file of every split
            (folder / "set/transforms_val.json").write_text((folder / "set/transforms_test.json").read_text())
        config, seconds = trained(folder / "set", seed, parser, folder / "log")
        write_mesh(folder / "true.ply", mesh)
        made = verb("mesh", "export", "--ns-config", config, folder / "made.ply")
        # nerfstudio's own parser puts the box [-1.5, 1.5]^3 into the cube.
        told = verb("mesh", "eval", folder / "made.ply", folder / "true.ply", *(["--align"] if parser else []))
        provenance = json.loads((config.parent / "fewstep/config.json").read_text())["provenance"]
    figures = {k: told[k] for k in ("iou", "chamfer_l1", "floor", "f0.02")}
    return {
        "seed": seed,
        "parser": parser or "fewstep-data",
        "iterations": provenance["iterations"],
        "psnr": provenance["scores"]["psnr"],
        "cpu_s": seconds,
        "watertight": made["watertight"],
        **figures,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(prog="python -m fewstep_3d.bench.nerfstudio_fit", description=__doc__)
    parser.add_argument("meshes", nargs="+", metavar="MESH")
    parser.add_argument("--views", type=int, default=36)
    parser.add_argument("--held-out", type=int, default=6)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", metavar="FILE")
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    rows: dict[str, list[dict[str, Any]]] = {}
    for file in args.meshes:
        mesh = coloured(normalised(read_mesh(file, Path(file).suffix == ".obj")))
        runs = [(seed, "") for seed in args.seeds] + [(args.seeds[0], "blender-data")]
        rows[Path(file).stem] = []
        for seed, name in runs:
            rows[Path(file).stem].append(row(mesh, seed, name, args))
            sys.stderr.write(f"{file} {rows[Path(file).stem][-1]}\n")
    psnr = {k: statistics.mean(r["psnr"] for r in v if r["parser"] == "fewstep-data") for k, v in rows.items()}
    command = " ".join(["python -m fewstep_3d.bench.nerfstudio_fit", *given])
    write({"bench": "nerfstudio_fit", "command": command, **machine(), "mean_psnr": psnr, "rows": rows}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
