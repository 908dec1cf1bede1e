"""Rigs: how an object is looked at by a multi-view model. V cameras, 360/V degrees apart, at one elevation and one azimuth offset.

A model is told each camera as its c2w with the position divided by its norm, flattened to 16 numbers (MVDream, arXiv:2308.16512).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep_3d.cameras import Cameras, orbit, pinhole


@dataclass(frozen=True)
class Rig:
    """Args:
        views: V; size: pixels per side; distance and fov (degrees): of all cameras.
        elevations: lowest and highest, degrees; azimuth offsets are all of [0, 360).
    Raises:
        ValueError: no views, elevations out of order.
    """

    views: int = 4
    size: int = 24
    distance: float = 2.6
    fov: float = 45.0
    elevations: tuple[float, float] = (0.0, 45.0)

    def __post_init__(self) -> None:
        low, high = self.elevations
        if self.views < 1 or self.size < 4 or not -90 <= low <= high <= 90:
            raise ValueError(
                "a rig has at least 1 view of 4 pixels and elevations -90 <= low <= high <= 90, "
                f"not {self.views}, {self.size} and [{low}, {high}]"
            )

    def draw(self, objects: int, generator: torch.Generator | None = None) -> Cameras:
        """Cameras of so many objects, `views` each, with random offsets and elevations."""
        u = torch.rand(objects, 2, generator=generator)
        low, high = self.elevations
        return self.at(360 * u[:, 0], low + (high - low) * u[:, 1])

    def at(self, azimuth: Tensor, elevation: Tensor) -> Cameras:
        """Cameras of objects whose first views are at these azimuths and elevations (N,), degrees."""
        around = azimuth[:, None] + torch.arange(self.views) * (360 / self.views)
        tilt = elevation[:, None].expand_as(around)
        return orbit(around.flatten(), tilt.flatten(), self.distance, self.fov, (self.size, self.size))

    def posed(self, c2w: Tensor) -> Cameras:
        """This rig's cameras at poses (N V, 4, 4) that were chosen elsewhere."""
        return pinhole(c2w, math.radians(self.fov), (self.size, self.size))

    def told(self, cameras: Cameras) -> Tensor:
        """What a model is told of them, (N, V, 16)."""
        c2w = cameras.c2w.clone()
        c2w[:, :3, 3] /= c2w[:, :3, 3].norm(dim=1, keepdim=True)
        return c2w.flatten(1).unflatten(0, (-1, self.views))


def azimuths(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """(azimuth in (-180, 180], elevation) in degrees of cameras that look at the origin, (V,) each."""
    x, y, z = cameras.c2w[:, :3, 3].unbind(1)
    return torch.rad2deg(torch.atan2(y, x)), torch.rad2deg(torch.atan2(z, torch.hypot(x, y)))
