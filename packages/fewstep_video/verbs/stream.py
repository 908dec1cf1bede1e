"""`fewstep video stream`."""

import argparse

from fewstep.command import Command
from fewstep_video.verbs.generate import DEFAULT_MODEL


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "output",
        metavar="OUT",
        help="where frames go as they are ready: a video (mp4, mkv, mov, webm), a folder of png, or - for raw rgb24 on stdout",
    )
    parser.add_argument(
        "--input", metavar="IN", help="a video to follow, or - for raw rgb24 on stdin (default: frames from noise)"
    )
    parser.add_argument("--size", metavar="WxH", help="of the raw frames on stdin")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="DIR",
        help="artifact folder or hub id (default: moving shapes, which needs --input)",
    )
    parser.add_argument("--class", dest="classes", metavar="NAME", help="class by name or number (default: the first)")
    parser.add_argument("--text", metavar="FILE", help="text embeddings as .safetensors, for models of texts")
    parser.add_argument("--frames", type=int, help="frames to write (default: until the input ends or Ctrl-C)")
    parser.add_argument("--fps", type=float, help="frames per second, also the deadline (default: input's or model's)")
    parser.add_argument("--steps", type=int, help="steps of the sampler (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise: the same seed streams the same frames")
    parser.add_argument(
        "--noise", type=float, default=0.6, help="of the input's frames, above 0 to 1: 1 forgets them (default 0.6)"
    )
    parser.add_argument("--adaptive", action="store_true", help="less noise where the input moves")
    parser.add_argument(
        "--guidance",
        choices=("none", "self", "onetime", "full"),
        default="none",
        help="of models that are not causal: residual (self, onetime) or ordinary (full)",
    )
    parser.add_argument("--cfg", type=float, default=1.2, help="its scale (default 1.2)")
    parser.add_argument(
        "--similar", type=float, metavar="COSINE", help="show the last result again for blocks at least this similar"
    )
    parser.add_argument("--zoom", type=int, default=1, help="enlarge pixels so many times (default 1)")
    parser.add_argument("--report", metavar="FILE", help="write latency, jitter and deadlines as JSON")
    parser.add_argument("--json", action="store_true", help="print the report as JSON (on stderr where OUT is -)")


def _run(args: argparse.Namespace) -> int:
    from fewstep_video.stream.run import main

    return main(args)


COMMAND = Command(
    "frames as they are ready, from noise or over another video, with a report of latency", _arguments, _run
)
