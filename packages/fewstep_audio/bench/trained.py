"""What benches of audio train: a recipe's artifact for one seed, after those of the recipes that it needs."""

import re
from pathlib import Path

from fewstep import recipes
from fewstep.bench import trainings


def trained(recipe: str, seed: int, folder: Path, data: str) -> Path:
    """The artifact of a recipe, trained with this seed after those that it needs, unless it is there."""
    place = folder / str(seed) / recipe
    if (place / "last").is_dir():
        return place / "last"
    from fewstep.train.fit import instantiate

    text = recipes.find(f"audio/{recipe}").read_text()
    for needed in sorted(set(re.findall(r"source: runs/(\w+)/", text))):
        trained(needed, seed, folder, data)
    place.mkdir(parents=True, exist_ok=True)
    (place / "recipe.yaml").write_text(text.replace("runs/", f"{place.parent}/"))
    run = instantiate(
        place / "recipe.yaml", [*trainings.seeded(seed), f"--data.init_args.corpus.init_args.folder={data}"]
    )
    run.trainer.fit(run.model, run.datamodule)
    return place / "last"
