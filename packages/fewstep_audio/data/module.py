"""What the Lightning data modules of speech share: one endless training loader, and held-out items drawn always alike."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fewstep.train.data import EndlessData
from fewstep.train.loader import Drawable
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


class SpeechData(EndlessData):
    """Subclasses set `train` and `val` in `setup`. Arguments are those of `EndlessData`."""

    val: Any

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=self.batch_size)


def divide(corpus: Corpus) -> tuple[list[Utterance], list[Utterance]]:
    """`corpus.division()`, with one line that tells what was found."""
    train, held_out = corpus.division()
    tell(f"speech: {corpus.layout}; {len(train)} to train on, {len(held_out)} held out")
    return train, held_out
