"""Endless samples of an exact world, for toy recipes."""

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

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
