"""What a verb of the command line is. Light: nothing here, or in the modules that define verbs, imports torch."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass


class UsageError(Exception):
    """A misuse of the command line that its parser cannot see; one line."""


@dataclass(frozen=True)
class Command:
    """A verb: one line of help, its arguments, and what runs it (heavy modules are imported inside `run`).

    Domains register theirs in the entry-point group `fewstep.commands`, under the verb's name.
    """

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        sys.stderr.write(f"{self.prog}: {message} (see {self.prog} --help)\n")
        raise SystemExit(2)
