"""What the data modules of video share: an endless training loader, held-out clips in one batch."""

from abc import abstractmethod
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from fewstep.train.loader import Drawable, Endless, StatefulLoader


class VideoData(L.LightningDataModule):
    """Batches {"video": (B, C, F, H, W) in [-1, 1], "label": (B,)}. Subclasses set `train` and `val`, a batch, in `setup`.

    Args:
        batch_size, workers: of the training loader, per process.
        seed: of the order and of all draws.
    """

    train: Drawable | Endless
    val: dict[str, Tensor]

    def __init__(self, batch_size: int = 64, workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    @abstractmethod
    def setup(self, stage: str | None = None) -> None: ...

    def train_dataloader(self) -> StatefulLoader:
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return StatefulLoader(self.train, self.batch_size, self.seed, rank, ranks, self.workers)

    def val_dataloader(self) -> DataLoader:
        """Everything that is held out, in one batch: distances of laws need all of it."""
        batches: Any = [self.val]
        return DataLoader(batches, batch_size=None)
