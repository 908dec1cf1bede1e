"""`fewstep fit | validate | test | predict -c recipe.yaml`: LightningCLI over Shell subclasses and data modules."""

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from fewstep.train.shell import Shell


class RecipeError(ValueError):
    """A recipe or an option that cannot be used; one line."""


class RecipeCLI(LightningCLI):
    """LightningCLI whose parse errors are one line, and whose checkpoints are loaded without unpickling objects."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if any(action.dest == "weights_only" for action in parser._actions):
            parser.set_defaults({"weights_only": True})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            super().parse_arguments(parser, args)
        except (ArgumentError, TypeError, ValueError) as err:
            raise RecipeError(one_line(err)) from err


def one_line(err: BaseException) -> str:
    """The telling lines of a nested parser error, joined: which key, what was wrong, what is allowed."""
    lines = [line.strip(" -\t") for line in str(err).splitlines()]
    skip = (
        "Given value",
        "Subclass types",
        "usage:",
        "tip:",
        "Problem with given class_path",
        "Does not validate against any",
    )
    return re.sub(r"\s+", " ", "; ".join([line for line in lines if line and not line.startswith(skip)][:4]))[:500]


def quiet() -> None:
    """Silence what a user cannot act on: Lightning's device report and tips, and warnings about its own internals."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        "LightningCLI's args",
        "`isinstance\\(treespec",
        ".*does not have many workers",
        "The `srun`",
        ".*log_every_n_steps",
    ):
        warnings.filterwarnings("ignore", message=text)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|lightning")


def main(args: Sequence[str]) -> int:
    """Run one LightningCLI subcommand."""
    quiet()
    for a, b in zip(args, [*args[1:], ""], strict=True):
        name = b if a in {"-c", "--config"} else a.partition("=")[2] if a.startswith(("--config=", "-c=")) else None
        if name is not None and not Path(name).is_file():
            raise RecipeError(f"recipe {name} does not exist (`fewstep recipes` lists the shipped ones)")
    _cli(list(args), run=True)
    return 0


def instantiate(recipe: Path, overrides: Sequence[str] = ()) -> RecipeCLI:
    """The model, data module and trainer of a recipe as `.model`, `.datamodule`, `.trainer`, nothing run yet."""
    quiet()
    return _cli([f"--config={recipe}", *overrides], run=False)


def _cli(args: list[str], run: bool) -> RecipeCLI:
    return RecipeCLI(
        Shell,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfigCallback if run else None,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        parser_kwargs={"exit_on_error": False},
        args=args,
        run=run,
    )
