"""What benches of video train: a recipe's artifacts for one seed, after those of the recipes that it needs."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from fewstep import recipes
from fewstep.bench import trainings


def trained(recipe: str, seed: int, folder: Path, overrides: Sequence[str] = ()) -> Path:
    """folder/SEED/RECIPE with `last` and `best`, trained unless they are there; a training that was cut off goes on from its checkpoint.

    overrides: further options of every training, such as the folder of the data.
    """
    place = folder / str(seed) / recipe
    if (place / "last").is_dir():
        return place
    from fewstep.train.fit import instantiate

    text = recipes.find(f"video/{recipe}").read_text()
    for needed in sorted(set(re.findall(r"source: runs/(\w+)/", text))):
        trained(needed, seed, folder, overrides)
    place.mkdir(parents=True, exist_ok=True)
    (place / "recipe.yaml").write_text(text.replace("runs/", f"{place.parent}/"))
    run = instantiate(place / "recipe.yaml", [*trainings.seeded(seed), *overrides])
    checkpoint = place / "last.ckpt"
    run.trainer.fit(run.model, run.datamodule, ckpt_path=str(checkpoint) if checkpoint.is_file() else None)
    return place


def cost(place: Path) -> dict[str, float]:
    """What the training of `last` took: iterations, CPU seconds (validation included)."""
    facts = json.loads((place / "last" / "config.json").read_text())["provenance"]
    return {"iterations": facts["iteration"], "training_cpu": facts["cpu_seconds"]}
