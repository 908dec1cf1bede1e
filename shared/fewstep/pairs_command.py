"""The verb `pairs`. Light: torch is imported when it runs."""

import argparse

from fewstep.command import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make teacher pairs (noise, sample), with states of the trajectories where asked for, as webdataset shards of safetensors. "
        "Run it again after an interruption: it goes on where it was. On many processes: "
        "torchrun --no-python --nproc-per-node 8 fewstep pairs ..."
    )
    parser.add_argument("model", metavar="MODEL", help="artifact folder or hub id of a generator")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the shards")
    parser.add_argument("-n", type=int, required=True, metavar="N", help="how many samples")
    parser.add_argument("--steps", type=int, help="steps of the teacher (default: the model's own)")
    parser.add_argument(
        "--solver",
        metavar="CLASS",
        help='solver of the teacher, such as Heun, or {"class_path": ..., "init_args": {...}} (default: the model\'s own)',
    )
    parser.add_argument("--cfg", type=float, default=1.0, help="guidance scale of the teacher (default 1: none)")
    parser.add_argument(
        "--states",
        nargs="+",
        metavar="STEP",
        help="also keep the states after these numbers of steps (0: the start), or `all`",
    )
    parser.add_argument(
        "--batch",
        metavar="FILE",
        help="conditions: safetensors with the tensors of a data batch of this model, taken in turn (default: drawn by the model)",
    )
    parser.add_argument(
        "--shape", type=int, nargs="+", metavar="N", help="of one state, for models that do not know it"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="samples computed together (default 64)")
    parser.add_argument("--shard-size", type=int, default=1024, help="samples per shard (default 1024)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")


def _run(args: argparse.Namespace) -> int:
    from fewstep.pairs.run import main

    return main(args)


PAIRS = Command("teacher pairs or trajectories to shards; restartable, on one process or many", _arguments, _run)
