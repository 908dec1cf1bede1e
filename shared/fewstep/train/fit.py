"""`fewstep fit -c recipe.yaml`: LightningCLI over Shell subclasses and data modules."""

import logging
import pickle
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import ArgumentError, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from fewstep.discriminators import Adversary
from fewstep.memory import keep_freed
from fewstep.train.shell import Shell


class RecipeError(ValueError):
    """A recipe, an option or a checkpoint that cannot be used; one line."""


class RecipeCLI(LightningCLI):
    """LightningCLI whose errors are one line, and whose checkpoints are loaded without unpickling objects."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """`fit` alone: the parsers of the others take a second, and recipes train."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if any(action.dest == "weights_only" for action in parser._actions):
            parser.set_defaults({"weights_only": True})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with _one_line_errors():
            super().parse_arguments(parser, args)

    def instantiate_classes(self) -> None:
        with _one_line_errors():
            super().instantiate_classes()

    def _dump_config(self) -> None:
        """Lightning would dump the recipe for `save_hyperparameters`, which no module calls: a third of a parser's time."""
        self.config_dump: dict[str, Any] = {}

    def _parse_ckpt_path(self) -> None:
        """Lightning would read hyper-parameters from the checkpoint here; recipes are complete without."""


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (ArgumentError, TypeError, ValueError, MisconfigurationException) as err:
        raise RecipeError(one_line(str(err))) from err


NOISE = (
    "Subtypes:",
    "Errors:",
    "Given value",
    "Does not validate against",
    "Expected a <class 'NoneType'>",
    "Problem with given class_path",
    "Not a valid subclass",
    "a class path",
    "a dict with",
    "usage:",
    "tip:",
)


def one_line(text: str) -> str:
    """A nested parser error as `model.student.denoiser.net: Option 'dimm' is not accepted by fewstep.nets.MLP`."""
    keys = re.findall(r'Parser key "([^"]+)"', text)
    classes = re.findall(r"given class_path '([^']+)'|class_path='([^']+)'", text)
    lines = [
        re.sub(r'^.*expects a function or a callable class: |Parser key "[^"]+":|\. Got value: Namespace\(.*', "", line)
        for line in text.splitlines()
    ]
    lines = [line.strip(" -\t") for line in lines]
    telling = [line for line in lines if line and not line.startswith(NOISE)]
    telling = [line for line in telling if not line.startswith("Expected a path but")] or telling
    message = re.sub(r"<class '([^']+)'>", r"\1", "; ".join(dict.fromkeys(telling[:3])))
    if message.endswith("is not accepted") and classes:
        message += f" by {next(filter(None, classes[-1]))}"
    return re.sub(r"\s+", " ", f"{'.'.join(keys)}: {message}" if keys else message)[:500]


# A recipe may name a kind of adversary; for other dataclasses jsonargparse takes the class of the annotation alone.
set_parsing_settings(subclasses_enabled=[Adversary])


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
        r"Found \d+ module\(s\) in eval mode",  # frozen parts of students are, on purpose
    ):
        warnings.filterwarnings("ignore", message=text)
    warnings.filterwarnings("ignore", message="Detected pickle protocol")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|lightning")


def main(args: Sequence[str]) -> int:
    """Run one LightningCLI subcommand.

    Raises:
        RecipeError: unusable recipes, options and checkpoints.
    """
    quiet()
    for name in _values(args, "-c", "--config"):
        check_recipe(Path(name))
    for name in _values(args, "--ckpt_path"):
        check_checkpoint(Path(name))
    _cli(list(args), run=True)
    return 0


def _values(args: Sequence[str], *options: str) -> list[str]:
    """What stands behind options, as `--option value` or `--option=value`."""
    apart = [b for a, b in pairwise(args) if a in options]
    return apart + [a.partition("=")[2] for a in args if a.partition("=")[0] in options and "=" in a]


def check_recipe(file: Path) -> None:
    """A recipe is a YAML file that holds a mapping."""
    if not file.is_file():
        raise RecipeError(f"recipe {file} does not exist (`fewstep recipes` lists the shipped ones)")
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise RecipeError(f"recipe {file} is not YAML: {' '.join(str(err).split())[:300]}") from err
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {file} holds {type(content).__name__}, not sections such as `model:` and `data:`")


def check_checkpoint(file: Path) -> None:
    """A checkpoint is a torch zip of tensors and plain values that a training run wrote."""
    if not file.is_file():
        raise RecipeError(f"checkpoint {file} does not exist")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as err:
        raise RecipeError(
            f"{file} is not a checkpoint: it is damaged, or holds more than tensors and plain values"
        ) from err
    if not {"pytorch-lightning_version", "state_dict", "loops"} <= set(content):
        raise RecipeError(f"{file} is not the checkpoint of a training run (`last.ckpt`)")


def instantiate(recipe: Path, overrides: Sequence[str] = ()) -> RecipeCLI:
    """The model, data module and trainer of a recipe as `.model`, `.datamodule`, `.trainer`, nothing run yet."""
    quiet()
    keep_freed()
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
