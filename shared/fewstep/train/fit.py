"""`fewstep fit | validate | test | predict -c recipe.yaml`: LightningCLI over Shell subclasses and data modules."""

from collections.abc import Sequence

import lightning as L
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningCLI

from fewstep.train.shell import Shell


class RecipeError(ValueError):
    """A recipe or an option that cannot be used; one line."""


class RecipeCLI(LightningCLI):
    """LightningCLI whose parse errors are one line."""

    def parse_arguments(self, parser, args) -> None:  # noqa: ANN001 - Lightning's own signature
        try:
            super().parse_arguments(parser, args)
        except (ArgumentError, TypeError, ValueError) as err:
            raise RecipeError(one_line(err)) from err


def one_line(err: BaseException) -> str:
    """The telling lines of a nested parser error, joined: which key, what was wrong."""
    lines = [line.strip(" -\t") for line in str(err).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Given value type", "Subclass types", "usage:", "tip:"))]
    return "; ".join(telling[:4])[:600]


def main(args: Sequence[str]) -> None:
    """Run one LightningCLI subcommand."""
    RecipeCLI(
        Shell,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        parser_kwargs={"exit_on_error": False},
        args=list(args),
    )
