"""Triplanes: three feature images span a field, f(x, y, z) from P_xy(x, y), P_xz(x, z), P_yz(y, z) (EG3D, arXiv:2112.07945).

    sdf(p)    = mlp_s(f) + |p| - radius          the network begins near a sphere (TriplaneTurbo, arXiv:2503.21694)
    colour(p) = activation(mlp_c(f))

The first layer W of both perceptrons is linear in the planes, and so commutes with interpolation and with the sum over planes:

    W f[x, y, z] = (W P_xy)[x, y] + (W P_xz)[x, z] + (W P_yz)[y, z]

On a grid of G^3 corners it costs 3 G^2 products in place of G^3, and only the remaining layers run on all corners (`tabulate`).
shapes: planes (B, 3, C, R, R), plane k indexed by its two axes in the order written; points (B, N, 3)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate

from fewstep_3d.fields import Grid, Values, corners

AXES = ((0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class Activation(ABC):
    """z (any shape) -> colours."""

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ScaledSigmoid(Activation):
    """sigmoid(alpha z), 0 < alpha < 1: useful gradients over a range 1/alpha as wide (Instant3D, arXiv:2311.08403).

    Raises:
        ValueError: alpha outside of (0, 1].
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha of the scaled sigmoid is in (0, 1], not {self.alpha}")

    def __call__(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.alpha * z)


@dataclass(frozen=True)
class WideSigmoid(Activation):
    """sigmoid(z) (1 + 2 margin) - margin: 0 and 1 are reached at finite z (MipNeRF, TriplaneTurbo)."""

    margin: float = 0.001

    def __call__(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z) * (1 + 2 * self.margin) - self.margin


class FirstLayer(nn.Module):
    """(planes, points) -> W f + bias: (B, N, width), one weight for all planes: f is their sum."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, width)

    def weights(self) -> Tensor:
        """(3, width, channels)."""
        return self.linear.weight.expand(3, -1, -1)

    def at(self, planes: Tensor, points: Tensor) -> Tensor:
        """At points, each plane interpolated there: the reference for `on_grid`."""
        w = self.weights()
        terms = [sampled(planes[:, k], points[..., axes]) @ w[k].T for k, axes in enumerate(AXES)]
        return terms[0] + terms[1] + terms[2] + self.linear.bias

    def on_grid(self, planes: Tensor, side: int) -> Tensor:
        """At the corners of a grid, (B, side, side, side, width)."""
        planes = interpolate(planes.flatten(0, 1), size=(side, side), mode="bilinear", align_corners=True)
        xy, xz, yz = torch.einsum("kwc,bkcij->kbijw", self.weights(), planes.unflatten(0, (-1, 3)))
        return xy[:, :, :, None] + xz[:, :, None] + (yz + self.linear.bias)[:, None]


class ConcatenatedLayer(FirstLayer):
    """A weight for each plane: f is their concatenation."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(3 * channels, width)
        self.channels = channels

    def weights(self) -> Tensor:
        return self.linear.weight.unflatten(1, (3, self.channels)).transpose(0, 1)


def sampled(plane: Tensor, at: Tensor) -> Tensor:
    """A plane (B, C, R, R) interpolated at (B, N, 2) in [-1, 1] of its first and second index -> (B, N, C)."""
    return grid_sample(plane, at.flip(-1)[:, None], align_corners=True)[:, :, 0].transpose(1, 2)


def head(first: FirstLayer, width: int, layers: int, out: int) -> nn.Sequential:
    """What follows the first layer: `layers` hidden ones in all, then `out` numbers, small at the start."""
    hidden = [m for _ in range(layers - 1) for m in (nn.Linear(width, width), nn.ReLU())]
    last = nn.Linear(width, out)
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.zero_()
    return nn.Sequential(nn.ReLU(), *hidden, last)


class TriplaneDecoder(nn.Module):
    """From planes to fields.

    Args:
        channels: C, of each plane.
        width, layers: of both perceptrons; layers counts the hidden ones.
        radius: of the sphere that an untrained field is.
        colours: numbers per point beside the signed distance, 0 for none.
        activation: of the colours.
    Raises:
        ValueError: sizes below 1, a radius outside of (0, 1).
    """

    def __init__(
        self,
        channels: int = 32,
        width: int = 64,
        layers: int = 2,
        radius: float = 0.5,
        colours: int = 3,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        if min(channels, width, layers) < 1 or colours < 0 or not 0 < radius < 1:
            raise ValueError(
                f"channels, width and layers are at least 1, colours 0, the radius in (0, 1), not {channels}, {width}, {layers}, {colours}, {radius}"
            )
        self.channels, self.width, self.layers, self.radius, self.colours = channels, width, layers, radius, colours
        self.activation = activation or ScaledSigmoid()
        self.shape_first = FirstLayer(channels, width)
        self.shape_last = head(self.shape_first, width, layers, 1)
        if colours:
            self.colour_first = ConcatenatedLayer(channels, width)
            self.colour_last = head(self.colour_first, width, layers, colours)

    def forward(self, planes: Tensor, points: Tensor) -> Values:
        """planes (B, 3, C, R, R), points (B, N, 3) -> values at them."""
        return self._finish(lambda first: first.at(planes, points), points)

    def tabulate(self, planes: Tensor, side: int) -> Grid:
        """The field at the corners of a grid, in B (side^3 + 3 side^2) layers' work."""
        values = self._finish(lambda first: first.on_grid(planes, side), corners(side, planes))
        return Grid(torch.cat([values.sdf[..., None], values.features], -1).permute(0, 4, 1, 2, 3))

    def field(self, planes: Tensor) -> Callable[[Tensor], Values]:
        """The field of these planes."""
        return lambda points: self(planes, points)

    def _finish(self, first: Callable[[FirstLayer], Tensor], points: Tensor) -> Values:
        sdf = self.shape_last(first(self.shape_first))[..., 0] + points.norm(dim=-1) - self.radius
        if not self.colours:
            return Values(sdf, sdf[..., None].narrow(-1, 0, 0))
        return Values(sdf, self.activation(self.colour_last(first(self.colour_first))))
