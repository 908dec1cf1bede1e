"""`fewstep video animate`."""

import argparse

from fewstep.command import Command
from fewstep_video.verbs.generate import DEFAULT_MODEL


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "image", metavar="IMAGE", help="the first frame: a picture, or a video whose last frames are gone on from"
    )
    parser.add_argument(
        "output", metavar="OUT", help="the video (mp4, mkv, mov, webm), preview (webp, gif) or contact sheet (png)"
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="DIR", help="artifact folder or hub id (default: moving shapes)"
    )
    parser.add_argument("--class", dest="classes", metavar="NAME", help="class by name or number (default: none)")
    parser.add_argument("--text", metavar="TEXT", help="for models of texts: words, or embeddings as FILE.safetensors")
    parser.add_argument("--frames", type=int, help="of the whole clip, the given ones too (default: one window)")
    parser.add_argument(
        "--overlap", type=int, default=1, help="frames that each window is given of what is there (default 1)"
    )
    parser.add_argument("--fps", type=float, help="frames per second (default: the model's own)")
    parser.add_argument("--steps", type=int, help="steps of the sampler, at least 2 (default: the model's own)")
    parser.add_argument("--cfg", type=float, default=1.0, help="guidance scale; 1 is none (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--zoom", type=int, default=1, help="enlarge pixels so many times (default 1)")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _run(args: argparse.Namespace) -> int:
    from fewstep_video.animate import main

    return main(args)


COMMAND = Command("go on from an image or a video, window after window", _arguments, _run)
