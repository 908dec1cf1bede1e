"""The command-line verbs of restoration. Light: torch is imported when a verb runs."""

import argparse

from fewstep.command import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="a picture, or a folder of pictures (png, jpg, webp, bmp, tiff)")
    parser.add_argument("output", metavar="OUT", help="the picture or folder to write")
    parser.add_argument(
        "--model",
        default="fewstep-demo/student",
        metavar="DIR",
        help="artifact folder or hub id (default: the demo's student)",
    )
    parser.add_argument("--steps", type=int, help="network evaluations (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise")
    parser.add_argument("--recursive", action="store_true", help="look into folders inside IN")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _run(args: argparse.Namespace) -> int:
    from fewstep_restoration.upscale import main

    return main(args)


UPSCALE = Command("enlarge pictures with a one-step super-resolution student", _arguments, _run)
