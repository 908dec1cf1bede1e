"""The command-line verb `enhance`. Light: torch is imported when it runs."""

import argparse

from fewstep.command import Command

# Mode -> the recipe whose artifact comes with the package as `weights/RECIPE`.
MODES = {
    "student": "fsdd_sgmse_crp",
    "predict": "fsdd_predictive",
    "bridge": "fsdd_sb",
    "diffuse": "fsdd_sgmse",
    "storm": "fsdd_storm",
}
DEFAULT = "student"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IN",
        help="a sound file, or a folder of them (wav, flac, ogg, mp3, ...; any rate, any channels)",
    )
    parser.add_argument("output", metavar="OUT", help="the file (wav, flac, ogg, mp3) or folder to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--mode", choices=list(MODES), default=DEFAULT, help="which of the package's own models (default: student)"
    )
    which.add_argument("--model", metavar="DIR", help="artifact folder or hub id of your own enhancer")
    parser.add_argument("--steps", type=int, help="steps of its sampler (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument(
        "--chunk",
        type=float,
        default=4.0,
        metavar="SECONDS",
        help="length of the overlapping parts that longer files are enhanced in (default 4)",
    )
    parser.add_argument("--recursive", action="store_true", help="look into folders inside IN")
    parser.add_argument(
        "--plot", action="store_true", help="also draw the spectrograms of input and output, as OUT.png"
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _run(args: argparse.Namespace) -> int:
    from fewstep_audio.enhance import main

    return main(args)


ENHANCE = Command("take noise out of speech", _arguments, _run)
