"""The command-line verbs of 3-D. Light: torch is imported when a verb runs."""

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from fewstep.command import Command, Parser

DEFAULT_MODEL = str(Path(__file__).parent / "weights" / "shapes_members")


class Part(NamedTuple):
    """A verb behind `fewstep mesh`: one line of help, its arguments, and the module whose `main` runs it."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    module: str


def _y_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--y-up", action="store_true", help="IN is y-up: many obj files are; glb always is")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resolution", type=int, default=96, help="corners of the grid per axis (default 96)")
    parser.add_argument("--faces", type=int, help="decimate to about so many faces")
    parser.add_argument("--texture", type=int, metavar="PIXELS", help="bake colours into a square texture of this side")
    parser.add_argument("--whole", action="store_true", help="keep all components, not the largest alone")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", nargs="?", metavar="IN", help="an artifact of one object, or a mesh (glb, obj, ply, stl)"
    )
    parser.add_argument(
        "output", metavar="OUT", help="the mesh to write: .glb, .obj, .ply or .stl, or .html: a page that shows it"
    )
    parser.add_argument("--ns-config", metavar="FILE", help="in place of IN: config.yml of a run of ns-train")
    _y_up(parser)
    _output(parser)


def _fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="a mesh (glb, obj, ply, stl), or a folder with transforms.json")
    parser.add_argument(
        "output", metavar="OUT", help="the mesh to write: .glb, .obj, .ply or .stl, or .html: a page that shows it"
    )
    parser.add_argument(
        "--artifact", metavar="DIR", help="also keep the fitted object, for `mesh export` and `turntable`"
    )
    parser.add_argument("--views", type=int, default=36, help="pictures of a mesh to fit to (default 36)")
    parser.add_argument("--size", type=int, default=64, help="pixels per side of a mesh's pictures (default 64)")
    parser.add_argument("--held-out", type=int, default=6, metavar="N", help="further views to judge by (default 6)")
    parser.add_argument("--iterations", type=int, default=500, help="gradient steps (default 500: about two minutes)")
    parser.add_argument(
        "--background", choices=["black", "white"], help="behind the object, for pictures without an alpha channel"
    )
    parser.add_argument("--scale", type=float, help="of the poses of transforms.json (default: cameras at distance 3)")
    parser.add_argument("--seed", type=int, default=0)
    _y_up(parser)
    _output(parser)


def _eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="a mesh, or an artifact of one object")
    parser.add_argument("reference", metavar="REFERENCE", help="the mesh it should be")
    parser.add_argument("--samples", type=int, default=20_000, help="points on each surface (default 20000)")
    parser.add_argument("--side", type=int, default=64, help="corners per axis of the grid of the IoU (default 64)")
    parser.add_argument("--resolution", type=int, default=96, help="corners per axis an artifact is extracted on")
    _y_up(parser)
    parser.add_argument("--align", action="store_true", help="first centre both, and scale their longest sides alike")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


PARTS = {
    "export": Part("an object or a mesh in another format", _export, "fewstep_3d.export"),
    "fit": Part("fit a triplane to pictures of a mesh, or to those of a folder", _fit, "fewstep_3d.fit_verb"),
    "eval": Part("IoU, Chamfer distances and F-scores of a mesh against another", _eval, "fewstep_3d.eval_verb"),
}


def _generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", metavar="WHAT", help="a class, a text or a picture (RGBA normal map), as the model takes"
    )
    parser.add_argument(
        "output", metavar="OUT", help="the mesh to write: .glb, .obj, .ply or .stl, or .html: a page that shows it"
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="DIR",
        help="artifact folder or hub id (default: six procedural shapes)",
    )
    parser.add_argument("--steps", type=int, help="network evaluations (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    _output(parser)
    parser.set_defaults(resolution=64)


GENERATE = Part("a mesh of a class, a text or a picture by a few-step student", _generate, "fewstep_3d.generate")


def _mesh_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = "; ".join(f"{name}: {part.help}" for name, part in PARTS.items())
    parser.add_argument("what", metavar="WHAT", help=f"{verbs}; anything else: {GENERATE.help}")
    parser.add_argument("rest", metavar="...", nargs=argparse.REMAINDER, help="see fewstep mesh WHAT --help")


def _mesh(args: argparse.Namespace) -> int:
    part = PARTS.get(args.what, GENERATE)
    parser = Parser(prog=f"fewstep mesh {args.what}", description=part.help)
    part.arguments(parser)
    given = args.rest if args.what in PARTS else [args.what, *args.rest]
    return import_module(part.module).main(parser.parse_intermixed_args(given))


MESH = Command("meshes of classes, texts and pictures; fit, export and compare meshes", _mesh_arguments, _mesh)


def _turntable_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="a mesh (glb, obj, ply, stl), or an artifact of one object")
    parser.add_argument("output", metavar="OUT", help="the film to write: .gif or .mp4")
    parser.add_argument("--frames", type=int, default=36, help="of one turn (default 36)")
    parser.add_argument("--size", type=int, default=128, help="pixels per side (default 128)")
    parser.add_argument("--channels", choices=["shaded", "rgb", "normal"], default="shaded")
    parser.add_argument("--elevation", type=float, default=15.0, help="degrees above the horizon (default 15)")
    _y_up(parser)
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _turntable(args: argparse.Namespace) -> int:
    from fewstep_3d.turntable import main

    return main(args)


TURNTABLE = Command("a film of a mesh on a turntable", _turntable_arguments, _turntable)
