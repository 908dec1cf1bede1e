"""A disc or square of any colour that moves straight over a flat or graded background."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep_video.worlds.world import DIRECTIONS, Scene, World, offsets, straight, uniform

SHAPES = ("disc", "square")
CANDIDATES = 8


@dataclass(frozen=True)
class MovingShapes(World):
    """8 classes, label = direction + 4 shape: `right-disc` ... `down-square`; 3 channels.

    Random: radius (half the side of a square; .13 to .2 of the size), way (.25 to .4), start, colours of object and background; half of the
    backgrounds are graded, linearly in a random direction. Of eight background colours the one farthest from the object's is taken.
    """

    @property
    def names(self) -> Sequence[str]:
        return [f"{direction}-{shape}" for shape in SHAPES for direction in DIRECTIONS]

    @property
    def channels(self) -> int:
        return 3

    def draw(self, label: Tensor, generator: torch.Generator) -> Scene:
        """One disc or square of any colour before a flat or graded background, which moves straight by its class, wholly inside."""
        n = len(label)
        radius = uniform(0.13, 0.2, (n,), generator) * self.size
        travel = uniform(0.25, 0.4, (n,), generator) * self.size
        position = straight(label, travel, radius, self.frames, self.size, generator)
        away = offsets(position, self.size)
        disc, square = away.square().sum(2).sqrt(), away.abs().amax(2)
        is_square = (label >= 4)[:, None, None, None]
        distance = torch.where(is_square, square, disc) - radius[:, None, None, None]
        inside = torch.sigmoid(-distance / self.edge)[:, None]  # (B, 1, F, H, W)
        colour = uniform(-1, 1, (n, 3), generator)
        background = self.background(colour, generator)[:, :, None]
        video = background + inside * (colour[:, :, None, None, None] - background)
        return Scene(video, label, position[:, :, None], radius[:, None])

    def background(self, colour: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 3, H, W) far from the object's colour (B, 3)."""
        n = len(colour)
        found = uniform(-0.8, 0.8, (n, CANDIDATES, 3), generator)
        far = (found - colour[:, None]).abs().mean(2).argmax(1)
        flat = found[torch.arange(n), far][:, :, None, None]
        angle = uniform(0, 2 * torch.pi, (n,), generator)
        along = torch.linspace(-0.5, 0.5, self.size)
        ramp = angle.cos()[:, None, None] * along + angle.sin()[:, None, None] * along[:, None]
        strength = uniform(-0.2, 0.2, (n, 3), generator) * (torch.rand(n, 1, generator=generator) < 0.5)
        return flat + strength[:, :, None, None] * ramp[:, None]
