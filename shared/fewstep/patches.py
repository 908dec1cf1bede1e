"""Real colour images without a download: 16x16 patches of the two photographs inside the scikit-learn package.

china.jpg and flower.jpg (danielbuechele and vultilion on Flickr, CC BY 2.0) at a quarter of their size, 106x160, so that a patch shows
more than a plain surface. The right fifth of each is held out: no patch for training touches it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader

from fewstep.class_generator import Judge
from fewstep.metrics import frechet_distance
from fewstep.train.data import EndlessData

SIDE = 16


@cache
def photographs() -> Tensor:
    """(2, 3, 106, 160) in [-1, 1]: china, then flower; means over 4x4 pixels."""
    from sklearn.datasets import load_sample_images

    images = torch.stack([torch.from_numpy(v.copy()) for v in load_sample_images().images])
    return avg_pool2d(images.permute(0, 3, 1, 2).float(), 4) / 127.5 - 1


@cache
def patches(held_out: bool = False) -> tuple[Tensor, Tensor]:
    """All patches x0 (N, 3, 16, 16) at every position, and their photographs (N,): to train on, or held out."""
    border = photographs().shape[-1] * 4 // 5
    part = photographs()[..., border:] if held_out else photographs()[..., :border]
    x0 = part.unfold(2, SIDE, 1).unfold(3, SIDE, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    label = torch.arange(len(x0))[:, None].expand(x0.shape[:2])
    return x0.flatten(0, 1).contiguous(), label.flatten().clone()


class _Draws:
    """Fresh random patches, mirrored at random."""

    def __init__(self, held_out: bool = False) -> None:
        self.x0, self.label = patches(held_out)

    def batch(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(self.label), (n,), generator=generator)
        x0, mirrored = self.x0[index], torch.rand(n, generator=generator) < 0.5
        return {"x0": torch.where(mirrored[:, None, None, None], x0.flip(-1), x0), "label": self.label[index]}


class Patches(EndlessData):
    """Batches {"x0": (B, 3, 16, 16) in [-1, 1], "label": (B,)}, the label says which photograph; 512 held-out patches validate."""

    def __init__(self, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__(batch_size, seed=seed)
        self.train = _Draws()

    def val_dataloader(self) -> DataLoader:
        batch = _Draws(held_out=True).batch(512, torch.Generator().manual_seed(12345))
        return DataLoader([batch], batch_size=None)  # pyright: ignore[reportArgumentType]


@cache
def _components(count: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (768,) of the patches to train on, leading principal axes (768, count), and the deviations along them (count,)."""
    x = patches()[0].flatten(1).double()
    values, axes = torch.linalg.eigh(x.T.cov())
    return x.mean(0), axes[:, -count:], values[-count:].sqrt()


def patch_features(x: Tensor) -> Tensor:
    """Features of patches (B, 3, 16, 16) in [-1, 1]: (B, 33) in float64.

    32 coordinates on the leading principal axes of real patches, in their deviations, and the log of the root mean square of what is left,
    which tells blur and grain.
    """
    mean, axes, deviations = _components()
    x = x.flatten(1).double().cpu() - mean
    z = x @ axes
    rest = (x - z @ axes.T).square().mean(1).clamp(min=1e-8).log() / 2
    return torch.cat([z / deviations, rest[:, None]], 1)


@dataclass(frozen=True)
class PatchesJudge(Judge):
    """frechet: Frechet distance of the batch's `patch_features` to those of its data, one number for all its samples.

    Compare it at equal batches only: it is biased at small ones.
    """

    def __call__(self, samples: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        distance = frechet_distance(patch_features(samples), patch_features(batch["x0"])).to(samples)
        return {"frechet": distance.expand(len(samples))}


def draw(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A batch of n random patches to train on: {"x0": (n, 3, 16, 16) in [-1, 1], "label": (n,)}."""
    return _Draws().batch(n, generator)
