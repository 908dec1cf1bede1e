"""The `fewstep` command. `--help`, `--version` and `recipes` answer without importing torch."""

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points

from fewstep import __version__
from fewstep.command import Command, Parser, UsageError
from fewstep.memory import keep_freed
from fewstep.pairs_command import PAIRS
from fewstep.plan_command import PLAN
from fewstep.recipes import RECIPES
from fewstep.search_command import SEARCH

LIGHTNING = {
    "fit": "train a recipe:  fewstep fit -c recipe.yaml [--model.init_args.iterations=2000 ...]",
}


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    names = sorted(e.name for e in entry_points(group="fewstep.demos"))
    parser.add_argument(
        "domain", nargs="?", default="restoration", help=f"one of: {', '.join(names) or 'none installed'}"
    )
    parser.add_argument("--minutes", type=float, default=4.5, help="training time, all stages together (default 4.5)")
    parser.add_argument(
        "--data", metavar="DIR", help="train on your own files instead of those that come with the package"
    )
    parser.add_argument(
        "--held-out",
        metavar="DIR",
        help="compare on these files (default: a part of the data that training never sees)",
    )
    parser.add_argument("--out", default="fewstep-demo", metavar="DIR", help="report folder (default fewstep-demo)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def _demo(args: argparse.Namespace) -> int:
    demos = {e.name: e for e in entry_points(group="fewstep.demos")}
    if args.domain not in demos:
        raise UsageError(f"no demo for {args.domain!r}; there is {', '.join(sorted(demos)) or 'none installed'}")
    if not args.minutes > 0:
        raise UsageError(f"--minutes must be positive, not {args.minutes}")
    return demos[args.domain].load()(args)


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "table",
        choices=[
            "overhead",
            "shell",
            "orders",
            "solvers",
            "distill",
            "steps",
            "preference",
            "forgetting",
            "convergence",
            "pictures",
        ],
        help="overhead: sampling per step; shell: training per iteration; orders: measured order of every solver; "
        "solvers: error against the exact flow at 1 to 50 evaluations; distill: every method on four worlds, many hours; "
        "steps: milliseconds per training step of every method; preference: alignment against the exact optimum; forgetting: what is left of an unlearnt class; convergence: iterations to reach a distance; "
        "pictures: those of the documentation",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", metavar="FILE", help="also write the table as JSON")


def _bench(args: argparse.Namespace) -> int:
    from importlib import import_module

    return import_module(f"fewstep.bench.{args.table}").main(args.threads, args.out)


COMMANDS = {
    "demo": Command("a slow teacher becomes a one-step student on real data, with a report", _demo_arguments, _demo),
    "recipes": RECIPES,
    "plan": PLAN,
    "pairs": PAIRS,
    "search-schedule": SEARCH,
    "bench": Command(
        "measure: sampling and training overhead, solvers, distillation methods", _bench_arguments, _bench
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb; bad input ends with one line on stderr and a non-zero exit."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if threading.current_thread() is threading.main_thread():
        # An orderly end: temporary outputs are removed on the way out.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    keep_freed()
    warnings.formatwarning = lambda message, *args, **kwargs: f"fewstep: {message}\n"
    verb = next((a for a in argv if not a.startswith("-")), "")
    try:
        raise SystemExit(_run(argv, verb))
    except KeyboardInterrupt:
        sys.stderr.write(f"fewstep {verb}: interrupted\n")
        raise SystemExit(130) from None
    except (UsageError, ValueError, OSError, RuntimeError) as err:
        if os.environ.get("FEWSTEP_DEBUG"):
            raise
        message = " ".join(str(err).split()) or type(err).__name__
        sys.stderr.write(f"fewstep {verb}: {message}\n")
        raise SystemExit(2 if isinstance(err, UsageError) else 1) from None


def _run(argv: list[str], verb: str) -> int:
    if verb in LIGHTNING and argv[0] == verb and not {"-h", "--help"} & set(argv[1:2]):
        from fewstep.train import fit

        return fit.main(argv)
    registered = {e.name: e for e in entry_points(group="fewstep.commands")}
    parser = Parser(prog="fewstep", description="Turn slow diffusion and flow models into one-to-four-step generators.")
    parser.add_argument("--version", action="version", version=f"fewstep {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True, parser_class=Parser)
    for name, command in {**COMMANDS, **{n: e.load() for n, e in sorted(registered.items())}}.items():
        command.arguments(verbs.add_parser(name, help=command.help, description=command.help))
    for name, text in LIGHTNING.items():
        verbs.add_parser(
            name, help=text, description=f"{text}. All options: fewstep {name} -c RECIPE --print_config", add_help=True
        )
    args = parser.parse_args(argv or ["--help"])
    command = COMMANDS.get(args.verb) or registered[args.verb].load()
    return command.run(args)
