"""What the data modules of video share: an endless training loader, held-out clips in one batch."""

from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from fewstep.train.data import EndlessData


class VideoData(EndlessData):
    """Batches {"video": (B, C, F, H, W) in [-1, 1], "label": (B,)}. Subclasses set `train` and `val`, a batch, in `setup`.

    Arguments are those of `EndlessData`.
    """

    val: dict[str, Tensor]

    def __init__(self, batch_size: int = 64, workers: int = 0, seed: int = 0) -> None:
        super().__init__(batch_size, workers, seed)

    def val_dataloader(self) -> DataLoader:
        """Everything that is held out, in one batch: distances of laws need all of it."""
        batches: Any = [self.val]
        return DataLoader(batches, batch_size=None)
