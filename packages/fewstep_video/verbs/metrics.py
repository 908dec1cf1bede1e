"""`fewstep video metrics`."""

import argparse

from fewstep.command import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("real", metavar="REAL", help="folder of videos (also in folders below it), or one video")
    parser.add_argument(
        "fake", metavar="FAKE", help="the same, or the artifact folder of a model, whose clips are generated"
    )
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip (default 8; a model's own)")
    parser.add_argument("--size", type=int, default=32, help="side of a clip in pixels (default 32; a model's own)")
    parser.add_argument("--stride", type=int, default=1, help="every so many-th frame of the real videos (default 1)")
    parser.add_argument("--count", type=int, default=256, help="clips of each side at most (default 256)")
    parser.add_argument("--steps", type=int, help="steps of the model (default: its own)")
    parser.add_argument("--seed", type=int, default=0, help="of the model's noise")
    parser.add_argument("--sheet", metavar="PNG", help="also draw clips of both sides, real above fake")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def _run(args: argparse.Namespace) -> int:
    from fewstep_video.compare import main

    return main(args)


COMMAND = Command("distances, motion and smoothness of videos or of a model beside real ones", _arguments, _run)
