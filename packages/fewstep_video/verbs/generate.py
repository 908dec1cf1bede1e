"""`fewstep video generate`."""

import argparse
from pathlib import Path

from fewstep.command import Command

DEFAULT_MODEL = str(Path(__file__).parents[1] / "weights" / "shapes_dmd2")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "output",
        metavar="OUT",
        help="the video (mp4, mkv, mov, webm), preview (webp, gif) or contact sheet (png) to write; of several clips OUT-0.mp4, OUT-1.mp4, ...",
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="DIR", help="artifact folder or hub id (default: moving shapes)"
    )
    parser.add_argument(
        "--class", dest="classes", metavar="NAME", help="class by name or number (default: all in turn)"
    )
    parser.add_argument(
        "--text",
        metavar="TEXT",
        help="for models of texts: words, or embeddings as FILE.safetensors with a tensor `text`",
    )
    parser.add_argument("--count", type=int, default=1, help="clips (default 1)")
    parser.add_argument("--frames", type=int, help="frames of a clip (default: as the model was trained)")
    parser.add_argument("--fps", type=float, help="frames per second (default: the model's own)")
    parser.add_argument("--steps", type=int, help="steps of the sampler (default: the model's own)")
    parser.add_argument("--cfg", type=float, default=1.0, help="guidance scale; 1 is none (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise: clip i of a seed is always the same")
    parser.add_argument("--zoom", type=int, default=1, help="enlarge pixels so many times (default 1)")
    parser.add_argument("--sheet", metavar="PNG", help="also draw all clips as a contact sheet")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _run(args: argparse.Namespace) -> int:
    from fewstep_video.generate import main

    return main(args)


COMMAND = Command("clips from noise, by class or text", _arguments, _run)
