"""Trainings of recipes with changes, each in a place of its own, and the targets that rows are held to."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from fewstep import recipes
from fewstep.bench import trainings
from fewstep_video.bench.trained import trained

Table = Mapping[str, Mapping[str, float]]


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
        return trained(variant.recipe, seed, folder, overrides)
    place = own / variant.name
    if (place / "last").is_dir():
        return place
    from fewstep.train.fit import instantiate

    text = recipes.find(f"video/{variant.recipe}").read_text()
    for needed in sorted(set(re.findall(r"source: runs/(\w+)/", text))):
        at = made(variant.before.get(needed, Variant(needed)), seed, folder, overrides)
        text = text.replace(f"source: runs/{needed}/", f"source: {at}/")
    place.mkdir(parents=True, exist_ok=True)
    (place / "recipe.yaml").write_text(text.replace(f"runs/{variant.recipe}", str(place)))
    run = instantiate(place / "recipe.yaml", [*trainings.seeded(seed), *overrides, *variant.options])
    checkpoint = place / "last.ckpt"
    run.trainer.fit(run.model, run.datamodule, ckpt_path=str(checkpoint) if checkpoint.is_file() else None)
    return place


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row in a file, made unless it is there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        file.write_text(json.dumps(found, indent=2))
    return json.loads(file.read_text())


class Target(NamedTuple):
    """value(rows of one seed by system) within bounds."""

    name: str
    value: Callable[[Table], float]
    at_most: float | None = None
    at_least: float | None = None

    def reached(self, value: float) -> bool:
        """Whether it is within the bounds."""
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


def ratio(figure: str, one: str, other: str) -> Callable[[Table], float]:
    """figure of one system over that of another."""
    return lambda rows: rows[one][figure] / rows[other][figure]


def judged(targets: Sequence[Target], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every target with its value for each seed, the median, and whether that reaches it; targets of missing systems are left out."""
    table: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in found:
        table.setdefault(row["seed"], {})[row["system"]] = row
    results = []
    for target in targets:
        try:
            values = [target.value(of_seed) for of_seed in table.values()]
        except KeyError:
            continue
        middle = median(values)
        bounds = {k: v for k in ("at_most", "at_least") if (v := getattr(target, k)) is not None}
        told = {"values": [round(v, 4) for v in values], "median": round(middle, 4)}
        results.append({"target": target.name, **bounds, **told, "reached": target.reached(middle)})
    return results
