"""Trainings of recipes with changes, each in a place of its own."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fewstep import recipes
from fewstep.bench.trainings import run_to_end, trained


class Variant(NamedTuple):
    """A recipe with further options, after `before` in place of the recipes that it names (name -> variant).

    An empty name is the recipe's own.
    """

    recipe: str
    name: str = ""
    options: tuple[str, ...] = ()
    before: Mapping[str, "Variant"] = {}


def made(variant: Variant, seed: int, folder: Path, overrides: Sequence[str] = ()) -> Path:
    """folder/SEED/NAME with `last` and `best`, trained unless they are there; a training that was cut off goes on from its checkpoint."""
    own = folder / str(seed)
    if not variant.name:
        return trained(f"video/{variant.recipe}", seed, folder, overrides)
    place = own / variant.name
    if (place / "last").is_dir():
        return place
    text = recipes.find(f"video/{variant.recipe}").read_text()
    for needed in sorted(set(re.findall(r"source: runs/(\w+)/", text))):
        at = made(variant.before.get(needed, Variant(needed)), seed, folder, overrides)
        text = text.replace(f"source: runs/{needed}/", f"source: {at}/")
    return run_to_end(text.replace(f"runs/{variant.recipe}", str(place)), place, seed, [*overrides, *variant.options])
