"""Where `fewstep bench distill` measures methods: how a recipe is moved there, and what its samples are worth there.

A recipe of the ring runs unchanged on the correlated mixture once its data and the widths of its networks are replaced, one of the digits
so on colour patches.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.metrics import frechet_distance, sliced_wasserstein
from fewstep.pairs import Job
from fewstep.paths import RectifiedFlow
from fewstep.solvers import UniPC
from fewstep.toy import Mixture, correlated, orbits, ring


def made(kind: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """A node of a recipe."""
    return {"class_path": kind, "init_args": dict(args)}


def replaced(recipe: Any, kinds: Mapping[str, Callable[[dict[str, Any]], Any]], keys: Mapping[str, Any]) -> Any:
    """A recipe with other nodes, made of their init_args by full class name, and other values by key."""
    if isinstance(recipe, list):
        return [replaced(v, kinds, keys) for v in recipe]
    if not isinstance(recipe, Mapping):
        return recipe
    if recipe.get("class_path") in kinds:
        return kinds[recipe["class_path"]](dict(recipe.get("init_args", {})))
    return {k: keys[k] if k in keys else replaced(v, kinds, keys) for k, v in recipe.items()}


class World(ABC):
    """name: of the world; folder: of its recipes; prefix: of their names, such as "ring_" of ring_kd."""

    name: str
    folder: str
    prefix: str
    samples: int
    # What the distance is called.
    distance: str
    # Of the teacher that students are compared with; its own where not given.
    teacher_steps: int | None = None
    # Whether guidance makes better data, or another distribution.
    guidance_aims_at_data: bool = False
    # Recipes that need one of these are left out: their parts are made for another world's data.
    foreign: frozenset[str] = frozenset()
    # Of recipes that read stored pairs.
    pairs: Job | None = None

    def moved(self, recipe: Any) -> Any:
        """The recipe on this world."""
        return recipe

    @abstractmethod
    def data(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Real samples, a batch of `samples`."""

    @abstractmethod
    def scores(self, x: Tensor, label: Tensor, real: Tensor) -> dict[str, float]:
        """`distance` to real samples and further figures of samples x that were asked for with labels."""


class MixtureWorld(World):
    """A mixture: sliced Wasserstein distance, modes covered, and the share of samples near one.

    near: no farther from a component's mean than 98.9 % of its own samples are, three standard deviations in the plane; modes:
    components that a quarter of their fair share of samples lies near; tv: total variation of the histogram over the nearest
    components against a uniform one.
    """

    folder, prefix, samples, distance = "toy", "ring_", 20000, "sliced_wasserstein"

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        x0, k = mixture.draw_labelled(self.samples, torch.Generator().manual_seed(0))
        away = (x0 - mixture.means[k]).norm(dim=1)
        self.radius = away.quantile(0.989)
        # Of a Gaussian in the plane with the same median: its deviation.
        self.std = (away.median() / (2 * math.log(2)) ** 0.5).item()

    def data(self, generator: torch.Generator) -> dict[str, Tensor]:
        x0, label = self.mixture.draw_labelled(self.samples, generator)
        return {"x0": x0.float(), "label": label}

    def scores(self, x: Tensor, label: Tensor, real: Tensor) -> dict[str, float]:
        m, x = self.mixture, x.double()
        distance, nearest = torch.cdist(x, m.means).min(1)
        near, k = distance <= self.radius, len(m.means)
        counts = torch.bincount(nearest[near], minlength=k) / len(x)
        share = torch.bincount(nearest, minlength=k) / len(x)
        return {
            "sliced_wasserstein": sliced_wasserstein(x, real, generator=torch.Generator().manual_seed(0)).item(),
            "modes": int((counts >= 0.25 / k).sum()),
            "near": near.double().mean().item(),
            "tv": 0.5 * (share - 1 / k).abs().sum().item(),
        }


class Ring(MixtureWorld):
    """The ring of eight Gaussians of the toy recipes."""

    name = "ring"

    def __init__(self) -> None:
        super().__init__(ring(RectifiedFlow(), std=0.2))


class Orbits(MixtureWorld):
    """Sequences of four points going round the ring, for causal students, which make them one after the other."""

    name, prefix = "orbits", "orbits_"

    def __init__(self) -> None:
        super().__init__(orbits(RectifiedFlow()))


class Correlated(MixtureWorld):
    """Ten correlated Gaussians in 64 dimensions, by the ring's recipes with networks of twice the width."""

    name = "mixture64"

    def __init__(self) -> None:
        super().__init__(correlated(RectifiedFlow()))

    def moved(self, recipe: Any) -> Any:
        def data(args: dict[str, Any]) -> dict[str, Any]:
            del args["std"]
            return made("fewstep.toy_data.CorrelatedData", args)

        def mlp(args: dict[str, Any]) -> dict[str, Any]:
            classes = {"classes": 10} if "classes" in args else {}
            return made("fewstep.nets.MLP", {**args, **classes, "dim": 64, "hidden": 2 * args.get("hidden", 128)})

        def density(args: dict[str, Any]) -> dict[str, Any]:
            points = [[round(v, 4) for v in row] for row in self.mixture.means.tolist()]
            return made("fewstep.preference.rewards.LogDensity", {"points": points, "std": round(self.std, 4)})

        kinds = {
            "fewstep.toy_data.RingData": data,
            "fewstep.nets.MLP": mlp,
            "fewstep.preference.rewards.LogDensity": density,
        }
        return replaced(recipe, kinds, {"shape": [64], "sigma_data": 1.12})


class DigitsWorld(World):
    """Handwritten digits by the labels: Frechet distance in the features of the shipped classifier, and its accuracy."""

    name, folder, prefix, samples, distance = "digits", "digits", "digits_", 1500, "frechet"
    teacher_steps, guidance_aims_at_data = 50, True
    # As the recipe of stored pairs says.
    pairs = Job(10000, solver=UniPC(), steps=12, cfg=1.5)

    def data(self, generator: torch.Generator) -> dict[str, Tensor]:
        from fewstep.digits import digits, division

        train = division()[0]
        return {name: v[train] for name, v in zip(("x0", "label"), digits(), strict=True)}

    def scores(self, x: Tensor, label: Tensor, real: Tensor) -> dict[str, float]:
        from fewstep.digits_judge import classifier, digits_features

        features = digits_features(x.clamp(-1, 1))
        seen = classifier().last(features).argmax(1)
        return {
            "frechet": frechet_distance(features, digits_features(real)).item(),
            "accuracy": (seen == label).double().mean().item(),
        }


class PatchesWorld(World):
    """Colour patches by the photograph they are from, by the recipes of the digits: Frechet distance in the features of `fewstep.patches`."""

    name, folder, prefix, samples, distance = "patches", "digits", "digits_", 1500, "frechet"
    guidance_aims_at_data = True
    pairs, foreign = DigitsWorld.pairs, frozenset({"digits_features"})

    def moved(self, recipe: Any) -> Any:
        def data(args: dict[str, Any]) -> dict[str, Any]:
            return made("fewstep.patches.Patches", args)

        def unet(args: dict[str, Any]) -> dict[str, Any]:
            return made("fewstep.nets.unet.UNet", {**args, "channels": 3, "classes": 2})

        def pair(args: dict[str, Any]) -> dict[str, Any]:
            return made("fewstep.discriminators.PairDiscriminator", {**args, "shape": [3, 16, 16], "classes": 2})

        kinds = {
            "fewstep.digits.Digits": data,
            "fewstep.nets.unet.UNet": unet,
            "fewstep.discriminators.PairDiscriminator": pair,
        }
        return replaced(recipe, kinds, {"shape": [3, 16, 16], "judge": "fewstep.patches.PatchesJudge"})

    def data(self, generator: torch.Generator) -> dict[str, Tensor]:
        from fewstep.patches import draw

        return draw(self.samples, generator)

    def scores(self, x: Tensor, label: Tensor, real: Tensor) -> dict[str, float]:
        from fewstep.patches import patch_features

        return {"frechet": frechet_distance(patch_features(x.clamp(-1, 1)), patch_features(real)).item()}


WORLDS: dict[str, type[World]] = {w.name: w for w in (Ring, Correlated, Orbits, DigitsWorld, PatchesWorld)}
