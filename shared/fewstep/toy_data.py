"""Endless samples of an exact world, for toy recipes: a ring of Gaussians, and the same with its modes as classes."""

from collections.abc import Mapping
from typing import cast

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fewstep.denoiser import Cond
from fewstep.generator import Generator, Prepared
from fewstep.nets import MLP
from fewstep.paths import RectifiedFlow
from fewstep.toy import ring
from fewstep.train.loader import StatefulLoader


class _Draws:
    """Fresh samples of the ring."""

    def __init__(self, modes: int, radius: float, std: float) -> None:
        self.world = ring(RectifiedFlow(), modes, radius, std)

    def batch(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"x0": self.world.draw(n, generator).float()}


class RingData(L.LightningDataModule):
    """Batches {"x0": (B, 2)} of `toy.ring`: `modes` Gaussians of deviation `std` on a circle of `radius`; 1024 fixed samples validate."""

    def __init__(
        self, modes: int = 8, radius: float = 2.0, std: float = 0.1, batch_size: int = 256, seed: int = 0
    ) -> None:
        super().__init__()
        self.modes, self.radius, self.std, self.batch_size, self.seed = modes, radius, std, batch_size, seed

    def setup(self, stage: str | None = None) -> None:
        self.draws = _Draws(self.modes, self.radius, self.std)

    def train_dataloader(self) -> StatefulLoader:
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return StatefulLoader(self.draws, self.batch_size, self.seed, rank, ranks)

    def val_dataloader(self) -> DataLoader:
        x0 = self.draws.world.draw(1024, torch.Generator().manual_seed(12345)).float()
        return DataLoader([{"x0": x} for x in x0], batch_size=1024)  # pyright: ignore[reportArgumentType]


class _LabelledDraws:
    """Fresh samples of the ring with their modes, a share of which is replaced by the null label."""

    def __init__(self, modes: int, radius: float, std: float, drop: float) -> None:
        self.means, self.std, self.drop = ring(RectifiedFlow(), modes, radius, std).means, std, drop

    def batch(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        k = torch.randint(len(self.means), (n,), generator=generator)
        x0 = self.means[k] + self.std * torch.randn(n, 2, dtype=torch.float64, generator=generator)
        dropped = torch.rand(n, generator=generator) < self.drop
        return {"x0": x0.float(), "label": torch.where(dropped, len(self.means), k)}


class LabelledRingData(L.LightningDataModule):
    """Batches {"x0": (B, 2), "label": (B,)} of `toy.ring`: the label is the mode, and `modes` where it is dropped.

    drop: share of training labels that are, so that a teacher learns both branches of guidance; 1024 fixed samples validate, all
    with labels.
    """

    def __init__(
        self,
        modes: int = 8,
        radius: float = 2.0,
        std: float = 0.1,
        drop: float = 0.0,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.modes, self.radius, self.std, self.drop = modes, radius, std, drop
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> StatefulLoader:
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        draws = _LabelledDraws(self.modes, self.radius, self.std, self.drop)
        return StatefulLoader(draws, self.batch_size, self.seed, rank, ranks)

    def val_dataloader(self) -> DataLoader:
        fixed = _LabelledDraws(self.modes, self.radius, self.std, 0.0)
        held_out = fixed.batch(1024, torch.Generator().manual_seed(12345))
        rows = [{k: v[i] for k, v in held_out.items()} for i in range(1024)]
        return DataLoader(rows, batch_size=1024)  # pyright: ignore[reportArgumentType]


class LabelledGenerator(Generator):
    """A generator of classes: its network takes `label`, and has the number of its `classes`, which is the null label."""

    def prepare(self, batch: Mapping[str, Tensor]) -> Prepared:
        """{"x0": (B, ...), "label": (B,)} -> x0, {"label"}."""
        return Prepared(batch["x0"], {"label": batch["label"]}, None)

    def unconditional(self, cond: Cond) -> Cond:
        """The same with the null label."""
        return {**cond, "label": torch.full_like(cond["label"], cast(MLP, self.denoiser.net).classes)}
