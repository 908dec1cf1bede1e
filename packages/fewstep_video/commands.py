"""`fewstep video SUBCOMMAND`. Each module of `verbs` is one subcommand: it holds a `Command` named COMMAND, and imports no torch."""

import argparse
import pkgutil
from importlib import import_module

from fewstep.command import Command, Parser
from fewstep_video import verbs


def subcommands() -> dict[str, Command]:
    """Name -> subcommand, one per module of `verbs`."""
    names = sorted(m.name for m in pkgutil.iter_modules(verbs.__path__))
    return {name: import_module(f"{verbs.__name__}.{name}").COMMAND for name in names}


def _arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="SUBCOMMAND", dest="subcommand", required=True, parser_class=Parser)
    for name, command in subcommands().items():
        command.arguments(kinds.add_parser(name, help=command.help, description=command.help))


def _run(args: argparse.Namespace) -> int:
    return subcommands()[args.subcommand].run(args)


VIDEO = Command("clips from noise, images and videos with few-step models; video metrics", _arguments, _run)
