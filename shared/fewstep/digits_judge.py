"""A small classifier of the digits, and the figures it gives of samples: accuracy, and Frechet distance in its feature space.

The weights ship with the package (folder `digits_classifier`, made by recipes/digits/digits_classifier.yaml; its config.json says how).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from fewstep.artifacts import load
from fewstep.class_generator import Judge
from fewstep.metrics import frechet_distance


class DigitsClassifier(nn.Module):
    """x: (B, 1, 8, 8) in [-1, 1] -> logits (B, 10)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.conv1, self.conv2 = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3, self.mix = nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.Linear(32 * width, width)
        # Without it features grow as training goes on, and with them the unit of the distance.
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.last = nn.Linear(width, 10)

    def features(self, x: Tensor) -> Tensor:
        """The layer before the logits, (B, width), of mean 0 and variance 1 over the width."""
        return self.norm(self.mix(silu(self.conv3(silu(self.conv2(silu(self.conv1(x)))))).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


@cache
def classifier() -> DigitsClassifier:
    """The shipped classifier, in evaluation mode."""
    return cast(DigitsClassifier, load(Path(__file__).parent / "digits_classifier").requires_grad_(False))


@torch.no_grad()
def digits_features(x: Tensor) -> Tensor:
    """Features of images (B, 1, 8, 8) in [-1, 1] by the shipped classifier, (B, 32)."""
    return classifier().to(x.device).features(x.float())


@dataclass(frozen=True)
class DigitsJudge(Judge):
    """accuracy: 1 where the classifier sees the digit that was asked for; frechet: distance of the batch's features to those of its data.

    The distance is one number per batch, the same for all its samples: compare it at equal batches only (it is biased at small ones).
    """

    def __call__(self, samples: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features, real = digits_features(samples), digits_features(batch["x0"])
        right = (classifier().last(features).argmax(1) == batch["label"]).float()
        distance = frechet_distance(features.cpu(), real.cpu()).to(right)
        return {"accuracy": right, "frechet": distance.expand(len(right))}
