"""The verb `search-schedule`. Light: torch is imported when it runs."""

import argparse

from fewstep.command import Command

METHODS = ("fit", "olss", "boss", "evolve", "usf", "q_sched")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="artifact folder or hub id of a generator")
    parser.add_argument("--nfe", type=int, required=True, help="network evaluations of the table")
    parser.add_argument("--out", required=True, metavar="FILE", help="the table to write (JSON)")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="fit",
        help="fit: times and weights together (default); usf: solver schedules; evolve, boss: times; olss: weights; q_sched: "
        "scales of outputs and states",
    )
    parser.add_argument(
        "--batch", metavar="FILE", help="conditions: safetensors with the tensors of a data batch of this model"
    )
    parser.add_argument("--shape", type=int, nargs="+", metavar="N", help="of one state, for models without conditions")
    parser.add_argument(
        "--target",
        metavar="MODEL",
        help="whose end points to reach, e.g. before quantisation (default: the model's own)",
    )
    parser.add_argument("--starts", type=int, default=128, help="noises to search with (default 128)")
    parser.add_argument("--batch-size", type=int, default=32, help="starts evaluated together (default 32)")
    parser.add_argument("--reference-steps", type=int, default=100, help="steps of the fine solver (default 100)")
    parser.add_argument("--quick", action="store_true", help="spend about a fifth of the evaluations")
    parser.add_argument(
        "--artifact", metavar="DIR", help="also save the model with this table as its own way of sampling"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def _run(args: argparse.Namespace) -> int:
    from fewstep.search.run import main

    return main(args)


SEARCH = Command("find times and weights that sample a model in few evaluations", _arguments, _run)
