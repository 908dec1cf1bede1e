"""`fewstep mesh fit IN OUT`: pictures in, a mesh out. A mesh as input is rendered first, which tells what a fit can reach."""

import argparse
import time
from pathlib import Path

import torch

import fewstep
from fewstep.command import UsageError
from fewstep.train.progress import bar
from fewstep_3d.cameras import rig
from fewstep_3d.export import check_output, facts, finished, report
from fewstep_3d.fitting import Fit, held_out_psnr
from fewstep_3d.mesh_files import normalised, read_mesh, write_mesh
from fewstep_3d.mesh_views import Views, held_out, mesh_views
from fewstep_3d.scene import Scene
from fewstep_3d.transforms import read_views
from fewstep_3d.triplane import TriplaneDecoder


def main(args: argparse.Namespace) -> int:
    """The verb."""
    out, start = check_output(args), time.perf_counter()
    if args.iterations < 1 or args.held_out < 0 or args.views < 1 or not 8 <= args.size <= 512:
        raise UsageError(
            "--iterations and --views are at least 1, --held-out 0, --size 8 to 512, "
            f"not {args.iterations}, {args.views}, {args.held_out} and {args.size}"
        )
    train, held_out = views_of(args)
    torch.manual_seed(args.seed)
    scene, fit = Scene(TriplaneDecoder(16, 32, 1), 64), Fit(args.iterations)
    with bar() as progress:
        task = progress.add_task("fitting", total=fit.iterations, figures="")
        fit(scene, train, args.seed, lambda n, loss: progress.update(task, completed=n, figures=f"loss {loss:.4f}"))
    judged = held_out_psnr(scene, held_out, fit) if held_out is not None else {}
    mesh = finished(scene.mesh(args.resolution), args, scene.field())
    if args.artifact:
        provenance = {"input": args.input, "seed": args.seed, "iterations": args.iterations, "scores": judged}
        fewstep.save(scene, args.artifact, provenance)
    write_mesh(out, mesh)
    seconds = time.perf_counter() - start
    report(args, {"input": args.input, "output": str(out), "seconds": seconds} | facts(mesh) | judged)
    return 0


def views_of(args: argparse.Namespace) -> tuple[Views, Views | None]:
    """(to fit, held out): of a folder's pictures every n-th is held out, where enough are left; of a mesh, between the others."""
    if Path(args.input).is_dir():
        views, keep = read_views(args.input, args.background, args.scale), args.held_out
    else:
        mesh = normalised(read_mesh(args.input, args.y_up))
        views, keep = mesh_views(mesh, rig(args.views + args.held_out, size=(args.size, args.size))), args.held_out
    return split(views, keep)


def split(views: Views, keep: int) -> tuple[Views, Views | None]:
    """(to fit, held out): `keep` views between the others; none where fewer than twice as many are there."""
    held = held_out(len(views.cameras), keep)
    if not len(held):
        return views, None
    rest = torch.ones(len(views.cameras), dtype=torch.bool)
    rest[held] = False
    return views.some(rest.nonzero()[:, 0]), views.some(held)
