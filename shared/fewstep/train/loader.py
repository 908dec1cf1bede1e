"""Endless batches that are a pure function of (seed, rank, batch number): shuffled, sharded, and exact on resume."""

from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from fewstep.train.shell import iteration_seed


class Drawable(Protocol):
    """A data set whose item `index` is drawn with the randomness of a generator (crops, flips, degradations)."""

    def __len__(self) -> int: ...
    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]: ...


class Endless(Protocol):
    """A source of fresh samples, drawn a batch at a time."""

    def batch(self, n: int, generator: torch.Generator) -> dict[str, Tensor]: ...


class Table(Protocol):
    """A data set held as columns, without randomness of its own: many rows are taken at once."""

    def __len__(self) -> int: ...
    def rows(self, index: list[int]) -> dict[str, Tensor]: ...


class _Batches(Dataset[dict[str, Tensor]]):
    """Batch number k of one rank, made on request, so that worker processes can make them in any order."""

    def __init__(self, data: Drawable | Endless | Table, batch_size: int, seed: int, rank: int, ranks: int) -> None:
        self.data, self.batch_size, self.seed, self.rank, self.ranks = data, batch_size, seed, rank, ranks
        self._order: tuple[int, list[int]] = (-1, [])

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        first = (k * self.ranks + self.rank) * self.batch_size
        if hasattr(self.data, "batch"):
            return cast(Endless, self.data).batch(self.batch_size, self._generator(first))
        data, positions = cast(Drawable | Table, self.data), range(first, first + self.batch_size)
        index = [self._index(len(data), p) for p in positions]
        if hasattr(data, "rows"):
            return cast(Table, data).rows(index)
        drawn = zip(index, positions, strict=True)
        return default_collate([cast(Drawable, data).draw(i, self._generator(p)) for i, p in drawn])

    def _index(self, n: int, position: int) -> int:
        """Which of n items stands at this position of the endless stream."""
        epoch, i = divmod(position, n)
        if self._order[0] != epoch:
            shuffle = torch.Generator().manual_seed(iteration_seed(self.seed, -1, epoch))
            self._order = epoch, torch.randperm(n, generator=shuffle).tolist()
        return self._order[1][i]

    def _generator(self, position: int) -> torch.Generator:
        return torch.Generator().manual_seed(iteration_seed(self.seed, -2, position))


class StatefulLoader:
    """An endless loader with `state_dict` / `load_state_dict`, which Lightning stores in checkpoints.

    Each pass over the data is a new permutation; rank r of n takes every n-th batch. Prefetching workers do not disturb the state:
    it counts the batches handed out.

    Args:
        data: what to draw from.
        batch_size: per rank.
        seed: of order and draws.
        rank, ranks: this process among how many.
        workers: processes that prepare batches.
    """

    def __init__(
        self,
        data: Drawable | Endless | Table,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.data, self.batch_size, self.seed, self.rank, self.ranks, self.workers = (
            data,
            batch_size,
            seed,
            rank,
            ranks,
            workers,
        )
        self.given = 0

    def __len__(self) -> int:
        # Endless in practice. Lightning fetches one batch ahead of a loader without a length, which would put the state one off.
        return 2**31

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        batches = _Batches(self.data, self.batch_size, self.seed, self.rank, self.ranks)
        # The loader draws a base seed when it starts; a generator of its own keeps the global stream untouched.
        own = torch.Generator().manual_seed(self.seed)
        for batch in DataLoader(
            batches, batch_size=None, sampler=_Count(self.given), num_workers=self.workers, generator=own
        ):
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.given = state_dict["given"]


class _Count:
    """start, start + 1, ... without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        k = self.start
        while True:
            yield k
            k += 1
