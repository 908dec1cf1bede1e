"""`fewstep vocode`. Light: torch is imported when the verb runs."""

import argparse
from pathlib import Path

from fewstep.command import Command

DEFAULT_MODEL = str(Path(__file__).parent / "weights" / "fsdd_specflow_turbo")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IN",
        help="sound to copy through its mel (wav, flac, ogg, mp3), a mel (bands, frames) as .npy or .safetensors, or a folder of both",
    )
    parser.add_argument("output", metavar="OUT", help="the sound file or folder to write (wav, flac, ogg, mp3)")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="DIR", help="artifact folder or hub id (default: spoken digits)"
    )
    parser.add_argument("--steps", type=int, help="steps of the vocoder (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise: the same input and seed sound the same")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="mel preset that .npy mels were made with (default: the model's own is assumed)",
    )
    parser.add_argument(
        "--plot", action="store_true", help="also draw the first ten seconds beside each output, as .png"
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _run(args: argparse.Namespace) -> int:
    from fewstep_audio.vocode import main

    return main(args)


VOCODE = Command("mel to sound, or a copy of sound through its mel, with a few-step vocoder", _arguments, _run)
