"""What the Lightning data modules of speech share: one endless training loader, and held-out items drawn always alike."""

from abc import abstractmethod
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fewstep.train.loader import Drawable, StatefulLoader, Table
from fewstep.train.shell import iteration_seed
from fewstep.train.tell import tell
from fewstep_audio.data.utterance import Corpus, Utterance


class Fixed:
    """A drawable data set whose item i is drawn once and for all, from (seed, i).

    Args:
        data: what to draw from.
        seed: of the draws.
        most: items at most.
    """

    def __init__(self, data: Drawable, seed: int = 0, most: int | None = None) -> None:
        self.data, self.seed, self.most = data, seed, most

    def __len__(self) -> int:
        return len(self.data) if self.most is None else min(len(self.data), self.most)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.data.draw(i, torch.Generator().manual_seed(iteration_seed(self.seed, -3, i)))


class SpeechData(L.LightningDataModule):
    """Subclasses set `train` and `val` in `setup`.

    Args:
        batch_size, workers: of the training loader, per process.
        seed: of the order and of all draws.
    """

    train: Drawable | Table
    val: Any

    def __init__(self, batch_size: int, workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    @abstractmethod
    def setup(self, stage: str | None = None) -> None: ...

    def train_dataloader(self) -> StatefulLoader:
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return StatefulLoader(self.train, self.batch_size, self.seed, rank, ranks, self.workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=self.batch_size)


def divide(corpus: Corpus) -> tuple[list[Utterance], list[Utterance]]:
    """`corpus.division()`, with one line that tells what was found."""
    train, held_out = corpus.division()
    tell(f"speech: {corpus.layout}; {len(train)} to train on, {len(held_out)} held out")
    return train, held_out
