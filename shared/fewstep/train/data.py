"""What data modules with an endless training loader share."""

import lightning as L

from fewstep.train.loader import Drawable, Endless, StatefulLoader, Table


class EndlessData(L.LightningDataModule):
    """Subclasses set `train`, in `setup` where files are read for it, and write `val_dataloader`.

    Args:
        batch_size, workers: of the training loader, per process.
        seed: of the order and of all draws.
    """

    train: Drawable | Endless | Table

    def __init__(self, batch_size: int, workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def setup(self, stage: str | None = None) -> None:
        """Read what `train` needs; worlds that are drawn need nothing."""

    def train_dataloader(self) -> StatefulLoader:
        """Batches without end, each process its own share, with a state that checkpoints keep."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return StatefulLoader(self.train, self.batch_size, self.seed, rank, ranks, self.workers)
