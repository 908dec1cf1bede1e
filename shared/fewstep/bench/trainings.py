"""What benches that train recipes have in common: their options, how a seed reaches all of a training, and the trainings themselves."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from fewstep import recipes


def parser(name: str, description: str | None, out: str | None) -> argparse.ArgumentParser:
    """Of `python -m fewstep.bench.NAME`: --seeds, --folder where trainings lie (shared by all these benches), --out."""
    found = argparse.ArgumentParser(prog=f"python -m fewstep.bench.{name}", description=description)
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--folder", type=Path, default=Path("runs/bench_distill"), metavar="DIR")
    found.add_argument("--out", metavar="FILE", default=out)
    return found


def seeded(seed: int) -> list[str]:
    """Options of a training: one seed for its networks, its randomness and its data, and no log."""
    given = ("--seed_everything", "--model.init_args.seed", "--data.init_args.seed")
    return [*(f"{name}={seed}" for name in given), "--trainer.logger=false"]


def trained(recipe: str, seed: int, folder: Path, overrides: Sequence[str] = ()) -> Path:
    """folder/SEED/NAME with `last` and `best` of a recipe DOMAIN/NAME, trained after those of its domain that it needs, unless they are there.

    A training that was cut off goes on from its checkpoint.

    Args:
        overrides: further options of every training, such as the folder of the data.
    """
    domain, name = recipe.split("/")
    place = folder / str(seed) / name
    if (place / "last").is_dir():
        return place
    text = recipes.find(recipe).read_text()
    for needed in sorted(set(re.findall(r"source: runs/(\w+)/", text))):
        trained(f"{domain}/{needed}", seed, folder, overrides)
    return run_to_end(text.replace("runs/", f"{place.parent}/"), place, seed, overrides)


def run_to_end(recipe: str, place: Path, seed: int, overrides: Sequence[str] = ()) -> Path:
    """Train the text of a recipe, whose folder is `place`, from its checkpoint where there is one; returns the folder."""
    from fewstep.train.fit import instantiate

    place.mkdir(parents=True, exist_ok=True)
    (place / "recipe.yaml").write_text(recipe)
    run = instantiate(place / "recipe.yaml", [*seeded(seed), *overrides])
    checkpoint = place / "last.ckpt"
    run.trainer.fit(run.model, run.datamodule, ckpt_path=str(checkpoint) if checkpoint.is_file() else None)
    return place


def cost(place: Path) -> dict[str, float]:
    """What the training of `last` took: iterations, CPU seconds (validation included)."""
    facts = json.loads((place / "last" / "config.json").read_text())["provenance"]
    return {"iterations": facts["iteration"], "training_cpu": facts["cpu_seconds"]}
