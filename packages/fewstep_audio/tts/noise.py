"""Noise of padded batches, item by item: what an item gets depends on its own seed and length alone, not on its neighbours."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


class PaddedNoise:
    """Successive standard normal tensors (B, bands, T), 0 after the length of each item (`item_noise.ItemNoise` is for equal lengths)."""

    def __init__(self, generators: Sequence[torch.Generator], bands: int, frames: Sequence[int]) -> None:
        self.generators, self.bands, self.frames = generators, bands, frames

    def draw(self) -> Tensor:
        size = max(self.frames)
        rows = zip(self.generators, self.frames, strict=True)
        return torch.stack([pad(torch.randn(self.bands, n, generator=g), (0, size - n)) for g, n in rows])
