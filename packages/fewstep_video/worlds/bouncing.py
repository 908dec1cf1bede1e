"""Balls of any colour that bounce off the walls and off each other, with equal masses and no loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep_video.worlds.world import Scene, World, offsets, uniform

# Steps of the motion within a frame: a contact is met within a sixteenth of a frame's way.
SUBSTEPS = 16


@dataclass(frozen=True)
class Bouncing(World):
    """One class, `balls`: directions, places and colours are free, so that samples have many modes; 3 channels, black background.

    Args:
        n: balls, 1 to 4; radius .12 to .17 of the size, speed .06 to .11 of the size per frame.
    Raises:
        ValueError: another n.
    """

    n: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n <= 4:
            raise ValueError(f"a world of bouncing balls has 1 to 4 of them, not {self.n}")

    @property
    def names(self) -> Sequence[str]:
        return ("balls",)

    @property
    def channels(self) -> int:
        return 3

    def draw(self, label: Tensor, generator: torch.Generator) -> Scene:
        """Balls each full in one colour channel; where they overlap colours add up."""
        b = len(label)
        radius = uniform(0.12, 0.17, (b, self.n), generator) * self.size
        position = self.moved(*self.start(radius, generator), radius)
        distance = offsets(position, self.size).square().sum(3).sqrt() - radius[:, None, :, None, None]
        inside = torch.sigmoid(-distance / self.edge)  # (B, F, N, H, W)
        bright = uniform(0.2, 1, (b, self.n, 3), generator)
        # One channel of each ball is full, so that no ball is dark.
        full = torch.randint(3, (b, self.n, 1), generator=generator)
        colour = bright.scatter(2, full, 1.0)
        video = torch.einsum("bfnhw,bnc->bcfhw", inside, colour).clamp(0, 1)
        return Scene(2 * video - 1, label, position, radius)

    def start(self, radius: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Places without overlap, and velocities, both (B, N, 2)."""
        b = len(radius)
        # One ball per quarter of the square, in random order: quarters are wider than two radii.
        quarter = torch.rand(b, 4, generator=generator).argsort(1)[:, : self.n]
        corner = torch.stack([quarter % 2, quarter // 2], -1) * (self.size / 2)
        room = self.size / 2 - 2 * radius[..., None]
        place = corner - 0.5 + radius[..., None] + room * torch.rand(b, self.n, 2, generator=generator)
        angle = uniform(0, 2 * torch.pi, (b, self.n), generator)
        speed = uniform(0.06, 0.11, (b, self.n), generator) * self.size
        return place, torch.stack([speed * angle.cos(), speed * angle.sin()], -1)

    def moved(self, place: Tensor, velocity: Tensor, radius: Tensor) -> Tensor:
        """Places in every frame, (B, F, N, 2)."""
        kept = [place]
        for _ in range(self.frames - 1):
            for _ in range(SUBSTEPS):
                place = place + velocity / SUBSTEPS
                velocity = collided(place, walled(place, velocity, radius, self.size), radius)
            kept.append(place)
        return torch.stack(kept, 1)


def walled(place: Tensor, velocity: Tensor, radius: Tensor, size: int) -> Tensor:
    """Velocities after the walls, which stand half a pixel outside of the outermost pixels' middles."""
    out = (place < radius[..., None] - 0.5) & (velocity < 0)
    out |= (place > size - 0.5 - radius[..., None]) & (velocity > 0)
    return torch.where(out, -velocity, velocity)


def collided(place: Tensor, velocity: Tensor, radius: Tensor) -> Tensor:
    """Velocities after the contacts of all pairs: balls of equal mass exchange what they have along the line between them."""
    for i in range(place.shape[1]):
        for j in range(i):
            line = place[:, i] - place[:, j]
            normal = line / line.norm(dim=-1, keepdim=True).clamp_min(1e-6)
            closing = ((velocity[:, i] - velocity[:, j]) * normal).sum(-1)
            touch = (line.norm(dim=-1) < radius[:, i] + radius[:, j]) & (closing < 0)
            exchange = torch.where(touch, closing, 0.0)[:, None] * normal
            velocity = velocity.clone()
            velocity[:, i] -= exchange
            velocity[:, j] += exchange
    return velocity
