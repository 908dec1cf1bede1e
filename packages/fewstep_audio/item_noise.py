"""Noise drawn per item from (seed, item index), on the CPU: an item sounds the same alone, in a batch, in a stream, on any device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fewstep.solvers.base import Row


class ItemNoise:
    """Standard normal noise for states like x: (B, ...), item i from its own stream; a source of noise for `fewstep.sampling.sample`.

    Args:
        x: gives shape, dtype and device of all draws.
        seed: at least 0.
        items: B indices; equal ones have equal noise.
    """

    def __init__(self, x: Tensor, seed: int, items: Sequence[int]) -> None:
        if len(items) != len(x) or seed < 0:
            raise ValueError(
                f"seed {seed} and {len(items)} items for a batch of {len(x)}; allowed: seed >= 0, an index per item"
            )
        self.x, self.seed, self.items = x, seed, tuple(items)
        self._streams = [item_generator(seed, item) for item in items]

    def draw(self) -> Tensor:
        """The next noise, like x."""
        shape = self.x.shape[1:]
        drawn = [torch.randn(shape, dtype=self.x.dtype, generator=stream) for stream in self._streams]
        return torch.stack(drawn).to(self.x.device)

    def __call__(self, row: Row) -> Tensor:
        """The noise of one solver row."""
        return self.draw()


def item_generator(seed: int, item: int) -> torch.Generator:
    """The stream of random numbers, on the CPU, of one item: neighbouring seeds and items share nothing."""
    mixed = int(np.random.SeedSequence([seed, item]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(mixed)
