"""Procedural shapes with exact signed distances: unlimited training data without a licence, and references for every figure.

    sphere  box  torus  cylinder  cone  chair (a union of boxes, without rotational symmetry: it shows wrong views)

z is up, chairs look towards +x. Sizes are uniform in ranges such that everything lies inside of the cube of half-side .8.
shapes: points (..., 3), sizes (S,) of one object -> signed distances (...)
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep_3d.fields import corners


@dataclass(frozen=True)
class Shape(ABC):
    """A family of shapes; `ranges` holds (low, high) of every size."""

    ranges: ClassVar[tuple[tuple[float, float], ...]]

    def draw(self, generator: torch.Generator) -> Tensor:
        """Random sizes, (S,)."""
        low, high = torch.tensor(self.ranges).unbind(1)
        return low + (high - low) * torch.rand(len(low), generator=generator)

    @abstractmethod
    def sdf(self, points: Tensor, sizes: Tensor) -> Tensor:
        """Exact outside of unions, and everywhere of the other shapes."""


class SphereShape(Shape):
    """Radius."""

    ranges = ((0.4, 0.75),)

    def sdf(self, points: Tensor, sizes: Tensor) -> Tensor:
        return points.norm(dim=-1) - sizes[0]


class Box(Shape):
    """Half-sides along x, y, z."""

    ranges = ((0.3, 0.7), (0.3, 0.7), (0.3, 0.7))

    def sdf(self, points: Tensor, sizes: Tensor) -> Tensor:
        return box(points, sizes)


class Torus(Shape):
    """Radius of the ring and of its tube, around z."""

    ranges = ((0.4, 0.55), (0.14, 0.24))

    def sdf(self, points: Tensor, sizes: Tensor) -> Tensor:
        ring = points[..., :2].norm(dim=-1) - sizes[0]
        return torch.stack([ring, points[..., 2]], -1).norm(dim=-1) - sizes[1]


class Cylinder(Shape):
    """Radius and half-height, around z."""

    ranges = ((0.3, 0.6), (0.35, 0.75))

    def sdf(self, points: Tensor, sizes: Tensor) -> Tensor:
        """Exact."""
        d = torch.stack([points[..., :2].norm(dim=-1), points[..., 2].abs()], -1) - sizes
        return d.amax(-1).clamp_max(0) + d.clamp_min(0).norm(dim=-1)


class Cone(Shape):
    """Radius at the bottom and half-height; the tip is up."""

    ranges = ((0.4, 0.7), (0.4, 0.7))

    def sdf(self, points: Tensor, sizes: Tensor) -> Tensor:
        """Exact: the nearer of the slanted side and the base, negative inside."""
        radius, half = sizes
        rho, z = points[..., :2].norm(dim=-1), points[..., 2]
        # Nearest point of the slanted side, from (radius, -half) to (0, half), in the half-plane (rho, z).
        along = ((radius - rho) * radius + (z + half) * 2 * half) / (radius**2 + 4 * half**2)
        along = along.clamp(0, 1)
        side = torch.stack([rho - radius * (1 - along), z + half - 2 * half * along], -1).norm(dim=-1)
        base = torch.stack([(rho - radius).clamp_min(0), z + half], -1).norm(dim=-1)
        inside = (z > -half) & (rho < radius * (half - z) / (2 * half))
        distance = torch.minimum(side, base)
        return torch.where(inside, -distance, distance)


class Chair(Shape):
    """Half-width, half-depth, height of the seat above the floor, height of the back, half-thickness."""

    ranges = ((0.3, 0.5), (0.3, 0.5), (0.45, 0.75), (0.45, 0.75), (0.06, 0.1))

    def sdf(self, points: Tensor, sizes: Tensor) -> Tensor:
        """The least of six boxes: exact outside."""
        wide, deep, seat, back, thick = sizes.tolist()
        floor = -(seat + back) / 2
        top = floor + seat

        def part(x: float, y: float, z: float, hx: float, hy: float, hz: float) -> Tensor:
            return box(points - points.new_tensor([x, y, z]), points.new_tensor([hx, hy, hz]))

        parts = [
            part(0, 0, top, deep, wide, thick),
            part(-deep + thick, 0, top + back / 2, thick, wide, back / 2),
            *(
                part(x * (deep - thick), y * (wide - thick), floor + seat / 2, thick, thick, seat / 2)
                for x in (-1, 1)
                for y in (-1, 1)
            ),
        ]
        return torch.stack(parts).amin(0)


def box(points: Tensor, half: Tensor) -> Tensor:
    """Signed distance to a box around the origin with these half-sides (3,)."""
    d = points.abs() - half
    return d.amax(-1).clamp_max(0) + d.clamp_min(0).norm(dim=-1)


SHAPES: Mapping[str, Shape] = {
    "sphere": SphereShape(),
    "box": Box(),
    "torus": Torus(),
    "cylinder": Cylinder(),
    "cone": Cone(),
    "chair": Chair(),
}


def members(name: str, count: int, side: int, generator: torch.Generator) -> Tensor:
    """Signed distances of random members of a class at the corners of a grid, (count, side, side, side)."""
    points, shape = corners(side, torch.zeros(())), SHAPES[name]
    return torch.stack([shape.sdf(points, shape.draw(generator)) for _ in range(count)])
