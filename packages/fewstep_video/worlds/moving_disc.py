"""One white disc on black that moves straight in one of four directions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep_video.worlds.world import DIRECTIONS, Scene, World, offsets, straight, uniform


@dataclass(frozen=True)
class MovingDisc(World):
    """4 classes, its directions; 1 channel. Radius, way and start are random: .13 to .2, .25 to .4 of the size."""

    frames: int = 6
    size: int = 12

    @property
    def names(self) -> Sequence[str]:
        return DIRECTIONS

    @property
    def channels(self) -> int:
        return 1

    def draw(self, label: Tensor, generator: torch.Generator) -> Scene:
        """One disc that moves straight by its class, wholly inside."""
        n = len(label)
        radius = uniform(0.13, 0.2, (n,), generator) * self.size
        travel = uniform(0.25, 0.4, (n,), generator) * self.size
        position = straight(label, travel, radius, self.frames, self.size, generator)
        distance = offsets(position, self.size).square().sum(2).sqrt() - radius[:, None, None, None]
        video = 2 * torch.sigmoid(-distance / self.edge) - 1
        return Scene(video[:, None], label, position[:, :, None], radius[:, None])
