"""A procedural world: clips drawn with all that is true of them.

Coordinates are pixels, (0, 0) the middle of the upper left pixel, x to the right and y down.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

DIRECTIONS = ("right", "left", "up", "down")
STEPS = ((1.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (0.0, 1.0))  # (x, y) of each


class Scene(NamedTuple):
    """Clips and their truth.

    video (B, C, F, H, W) in [-1, 1]; label (B,); of each of N objects position (B, F, N, 2) as (x, y) in pixels and radius (B, N) in pixels.
    """

    video: Tensor
    label: Tensor
    position: Tensor
    radius: Tensor

    @property
    def speed(self) -> Tensor:
        """Pixels per frame, the mean over time: (B, N)."""
        return self.position.diff(dim=1).norm(dim=-1).mean(1)


@dataclass(frozen=True)
class World(ABC):
    """An endless source of clips of squares of `size` pixels.

    Args:
        frames, size: of a clip.
        edge: width in pixels of an object's edge, sigmoid(-distance/edge); less is sharper.
    Raises:
        ValueError: fewer than 2 frames, or fewer than 8 pixels.
    """

    frames: int = 8
    size: int = 16
    edge: float = 0.35

    def __post_init__(self) -> None:
        if self.frames < 2 or self.size < 8 or not self.edge > 0:
            given = f"{self.frames} frames of {self.size} pixels with edges of {self.edge}"
            raise ValueError(f"a world has at least 2 frames of 8 pixels and edges wider than 0, not {given}")

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """Of the classes, in the order of the labels."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Of a clip: 1 or 3."""

    @abstractmethod
    def draw(self, label: Tensor, generator: torch.Generator) -> Scene:
        """A clip of each label (B,)."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, F, H, W)."""
        return self.channels, self.frames, self.size, self.size

    def batch(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """{"video": (n, C, F, H, W), "label": (n,)}, labels equally likely."""
        scene = self.draw(torch.randint(len(self.names), (n,), generator=generator), generator)
        return {"video": scene.video, "label": scene.label}

    def balanced(self, n: int, seed: int) -> Scene:
        """n clips, each label as often as the others: what figures are taken of."""
        return self.draw(torch.arange(n) % len(self.names), torch.Generator().manual_seed(seed))


def uniform(low: float, high: float, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent U[low, high]."""
    return low + (high - low) * torch.rand(*shape, generator=generator)


def offsets(position: Tensor, size: int) -> Tensor:
    """From positions (..., 2) to every pixel: (..., 2, size, size), x first."""
    pixel = torch.arange(size, dtype=position.dtype)
    grid = torch.stack([pixel.expand(size, size), pixel[:, None].expand(size, size)])
    return grid - position[..., None, None]


def straight(
    label: Tensor, travel: Tensor, radius: Tensor, frames: int, size: int, generator: torch.Generator
) -> Tensor:
    """Positions (B, F, 2) on a straight way of `travel` pixels in direction label % 4, wholly inside with a pixel to spare.

    The start is uniform over what the way allows; radius, travel: (B,).
    """
    n, margin = len(label), radius + 1
    step = torch.tensor(STEPS)[label % 4]  # (B, 2)
    room = (size - 1 - 2 * margin)[:, None] - travel[:, None] * step.abs()
    low = margin[:, None] + travel[:, None] * (-step).clamp_min(0)
    start = low + room * torch.rand(n, 2, generator=generator)
    done = torch.linspace(0, 1, frames)
    return start[:, None] + (done[None, :, None] * travel[:, None, None]) * step[:, None]
