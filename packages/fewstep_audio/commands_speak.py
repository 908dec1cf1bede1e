"""`fewstep speak`. Light: torch is imported when the verb runs."""

import argparse
from pathlib import Path

from fewstep.command import Command

DEFAULT_MODEL = str(Path(__file__).parent / "weights" / "fsdd_tts_cd")
GRIFFIN_LIM = "griffin-lim"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text", metavar="TEXT", help="what to say; `-` reads it from stdin, with --file it names a text file"
    )
    parser.add_argument("output", metavar="OUT", help="the sound file to write (wav, flac, ogg, mp3)")
    parser.add_argument("--file", action="store_true", help="TEXT is the name of a text file")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="DIR", help="artifact folder or hub id (default: spoken digits)"
    )
    parser.add_argument(
        "--vocoder",
        metavar="DIR",
        help=f"artifact folder, hub id, or {GRIFFIN_LIM} (default: that of spoken digits where it fits the model, else {GRIFFIN_LIM})",
    )
    parser.add_argument("--steps", type=int, help="network evaluations of the decoder (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise: the same text and seed sound the same")
    parser.add_argument("--speaker", metavar="NAME", help="one of the model's speakers (default: the first)")
    parser.add_argument("--speed", type=float, default=1.0, help="2 is twice as fast")
    parser.add_argument("--plot", metavar="PNG", help="also draw the first ten seconds: mel spectrogram and wave")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _run(args: argparse.Namespace) -> int:
    from fewstep_audio.speak import main

    return main(args)


SPEAK = Command("text to speech with a few-step student", _arguments, _run)
