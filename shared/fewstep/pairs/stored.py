"""The data module of teacher pairs that were made before: distillation without evaluating the teacher again."""

from pathlib import Path

from torch.utils.data import DataLoader

from fewstep.pairs.folder import PairTable, check_shard, read_manifest
from fewstep.train.data import EndlessData


class StoredPairs(EndlessData):
    """Batches of stored pairs: "noise", "target", "x0" and, where the folder has them, "states", "y" and conditions by name.

    Args:
        folder: as written by `fewstep pairs`.
        batch_size: per process.
        seed: of the order.
        held_out: the last so many pairs are not trained on: they validate, as one batch.
        verify: compare every shard with its checksum before the start (reads the whole folder once).
    """

    def __init__(
        self, folder: str, batch_size: int = 64, seed: int = 0, held_out: int = 256, verify: bool = True
    ) -> None:
        super().__init__(batch_size, seed=seed)
        self.folder, self.held_out, self.verify = folder, held_out, verify

    def prepare_data(self) -> None:
        """Raises PairsError where a shard is missing or damaged."""
        for entry in read_manifest(Path(self.folder))["shards"]:
            check_shard(Path(self.folder), entry, self.verify)

    def setup(self, stage: str | None = None) -> None:
        """Raises PairsError for folders that are not complete, and ValueError where nothing is left to train on."""
        folder = Path(self.folder)
        self.manifest = read_manifest(folder)
        count = self.manifest["job"]["n"]
        if not 0 <= self.held_out < count:
            raise ValueError(f"of {count} pairs 0 to {count - 1} can be held out, not {self.held_out}")
        for entry in self.manifest["shards"]:
            check_shard(folder, entry)
        self.train = PairTable(folder, self.manifest, 0, count - self.held_out)
        self.val = PairTable(folder, self.manifest, count - self.held_out, count)

    @property
    def times(self) -> tuple[float, ...]:
        """The times of "states"; empty where there are none. Known after `setup`."""
        return tuple(self.manifest["job"]["times"])

    def val_dataloader(self) -> DataLoader:
        batches = [self.val.rows(list(range(len(self.val))))] if self.held_out else []
        return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]
