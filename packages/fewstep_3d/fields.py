"""Fields: what is at a point of space. A signed distance, negative inside, and features such as colours beside it.

A field is a callable from points (B, N, 3) in [-1, 1]^3 to `Values`; everything that renders or extracts surfaces takes one.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep_3d.trilinear import trilinear


class FieldError(ValueError):
    """A field without a surface, or with numbers that are not finite; one line."""


class Values(NamedTuple):
    """sdf: (B, N), features: (B, N, F), F may be 0."""

    sdf: Tensor
    features: Tensor


Field = Callable[[Tensor], Values]


def slopes(field: Field, points: Tensor, create_graph: bool | None = None) -> tuple[Values, Tensor]:
    """The values and the gradient of the signed distance (B, N, 3), by automatic differentiation.

    create_graph: so that the gradient can be trained through; wherever gradients are on, unless given.
    """
    graph = torch.is_grad_enabled() if create_graph is None else create_graph
    with torch.enable_grad():
        at = points.detach().requires_grad_()
        values = field(at)
        (slope,) = torch.autograd.grad(values.sdf.sum(), at, create_graph=graph)
    return values if graph else Values(values.sdf.detach(), values.features.detach()), slope


class Sphere:
    """|x| - radius in one colour: the shape that trainings begin at, and tests compare with."""

    def __init__(self, radius: float = 0.5, colour: tuple[float, ...] = (0.8, 0.5, 0.3)) -> None:
        self.radius, self.colour = radius, colour

    def __call__(self, points: Tensor) -> Values:
        colour = points.new_tensor(self.colour).expand(*points.shape[:-1], len(self.colour))
        return Values(points.norm(dim=-1) - self.radius, colour)


class Grid:
    """A field tabulated at the G^3 corners of a regular grid over [-1, 1]^3, linear between them.

    Args:
        values: (B, 1 + F, G, G, G) indexed [x, y, z]: the signed distance, then features.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @property
    def side(self) -> int:
        """G."""
        return self.values.shape[-1]

    def __call__(self, points: Tensor) -> Values:
        out = trilinear(self.values, points)
        return Values(out[..., 0], out[..., 1:])

    def slope(self) -> Tensor:
        """The gradient of the signed distance at the corners by central differences, (B, 3, G, G, G); one-sided at the faces."""
        step = 2 / (self.side - 1)
        return torch.stack(torch.gradient(self.values[:, 0], spacing=step, dim=(1, 2, 3)), 1)

    def with_normals(self) -> "Grid":
        """The same with the unit normal as three more features."""
        n = self.slope()
        return Grid(torch.cat([self.values, n / _length(n)], 1))

    def eikonal(self) -> Tensor:
        """mean (|grad f| - 1)^2 over the corners, by central differences."""
        return (_length(self.slope()) - 1).square().mean()


def _length(v: Tensor) -> Tensor:
    """|v| over dimension 1, at least 1e-6: (B, 1, ...). On a CPU `norm` takes a hundred times as long over three rows that lie apart."""
    return v.square().sum(1, keepdim=True).clamp_min(1e-12).sqrt()


def corners(side: int, like: Tensor) -> Tensor:
    """The points of a grid, (side, side, side, 3) indexed [x, y, z]."""
    line = torch.linspace(-1, 1, side, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)


def tabulated(field: Field, side: int, like: Tensor, objects: int = 1, chunk: int = 2**18) -> Grid:
    """A field evaluated at the corners of a grid; like: a tensor of the dtype and on the device of the field."""
    points = corners(side, like).view(1, -1, 3).expand(objects, -1, -1)
    parts = [torch.cat([v.sdf[..., None], v.features], -1) for v in map(field, points.split(chunk, 1))]
    out = torch.cat(parts, 1)
    return Grid(out.transpose(1, 2).unflatten(2, (side, side, side)))
