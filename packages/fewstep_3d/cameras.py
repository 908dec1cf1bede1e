"""Pinhole cameras, their rays and the conventions of other programs.

World: right-handed, z up, the object inside the cube [-1, 1]^3; azimuth from +x towards +y, elevation from the xy plane.
Camera: c2w columns = right, up, backward, position. Pixel (row i, column j) has its centre at (j + 1/2, i + 1/2).

    direction of the pixel (u, v):  c2w ((u - cx)/fx, -(v - cy)/fy, -1),  normalised: depth is a distance along the ray

    convention   world    camera axes              used by
    BLENDER      z up     right, up, backward      NeRF's and nerfstudio's transforms.json, threestudio; that of this package
    OPENGL       y up     right, up, backward      glTF, three.js
    OPENCV       z up     right, down, forward     COLMAP and calibration code (their world is whatever was calibrated)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class CameraError(ValueError):
    """Cameras that cannot be used; one line."""


class Rays(NamedTuple):
    """origins, directions: (..., 3); directions of length 1."""

    origins: Tensor
    directions: Tensor


@dataclass(frozen=True)
class Convention:
    """How another program writes c2w: camera-axis signs, and the rotation from its world to ours."""

    axes: tuple[float, float, float]
    world: tuple[tuple[float, float, float], ...]

    def to_ours(self, c2w: Tensor) -> Tensor:
        """c2w (..., 4, 4) of that program -> ours."""
        return self._world(c2w) @ c2w @ self._axes(c2w)

    def from_ours(self, c2w: Tensor) -> Tensor:
        """Ours -> (..., 4, 4) of that program."""
        return self._world(c2w).mT @ c2w @ self._axes(c2w)

    def _axes(self, like: Tensor) -> Tensor:
        return torch.diag(torch.tensor([*self.axes, 1.0], dtype=like.dtype, device=like.device))

    def _world(self, like: Tensor) -> Tensor:
        out = torch.eye(4, dtype=like.dtype, device=like.device)
        out[:3, :3] = torch.tensor(self.world, dtype=like.dtype, device=like.device)
        return out


SAME = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
FROM_Y_UP = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))  # (x, y, z) of theirs -> (x, -z, y)
BLENDER = Convention((1.0, 1.0, 1.0), SAME)
OPENGL = Convention((1.0, 1.0, 1.0), FROM_Y_UP)
OPENCV = Convention((1.0, -1.0, -1.0), SAME)


@dataclass(frozen=True, eq=False)
class Cameras:
    """V cameras of one image size.

    Args:
        c2w: (V, 4, 4).
        focal: (V, 2) fx, fy and centre: (V, 2) cx, cy, in pixels.
        size: (height, width).
    Raises:
        CameraError: wrong shapes, no camera at all, numbers that are not finite, singular or scaled rotations.
    """

    c2w: Tensor
    focal: Tensor
    centre: Tensor
    size: tuple[int, int]

    def __post_init__(self) -> None:
        n = len(self.c2w)
        if self.c2w.shape != (n, 4, 4) or self.focal.shape != (n, 2) or self.centre.shape != (n, 2):
            given = f"{tuple(self.c2w.shape)}, {tuple(self.focal.shape)} and {tuple(self.centre.shape)}"
            raise CameraError(f"cameras are (V, 4, 4) poses with (V, 2) focal lengths and centres, not {given}")
        if n < 1 or min(self.size) < 1:
            raise CameraError(f"{n} cameras of {self.size[0]}x{self.size[1]} pixels; at least one of each is needed")
        numbers = torch.cat([self.c2w.flatten(1), self.focal, self.centre], 1)
        _each(torch.isfinite(numbers).all(1), "has numbers that are not finite")
        _each((self.focal > 0).all(1), "has a focal length that is not positive")
        r = self.c2w[:, :3, :3].double()
        off = (r.mT @ r - torch.eye(3, dtype=r.dtype, device=r.device)).abs().amax((1, 2))
        _each((off < 1e-2) & (torch.linalg.det(r) > 0), "is singular: its c2w is no rotation with determinant 1")

    def __len__(self) -> int:
        return len(self.c2w)

    def __getitem__(self, index: Sequence[int] | Tensor | slice) -> "Cameras":
        """Some of them."""
        return Cameras(self.c2w[index], self.focal[index], self.centre[index], self.size)

    def resized(self, height: int, width: int) -> "Cameras":
        """The same views with other pixels."""
        k = self.focal.new_tensor([width / self.size[1], height / self.size[0]])
        return Cameras(self.c2w, self.focal * k, self.centre * k, (height, width))

    def to(self, device: torch.device | str) -> "Cameras":
        """The same on a device."""
        return Cameras(self.c2w.to(device), self.focal.to(device), self.centre.to(device), self.size)

    def rays(self) -> Rays:
        """Of all pixel centres, (V, H, W, 3) each."""
        i, j = (torch.arange(n, dtype=self.c2w.dtype, device=self.c2w.device) + 0.5 for n in self.size)
        v, u = torch.meshgrid(i, j, indexing="ij")
        return self.rays_at(torch.stack([u, v], -1).expand(len(self), -1, -1, -1))

    def rays_at(self, pixels: Tensor) -> Rays:
        """Of pixel positions (u, v): (V, ..., 2) -> (V, ..., 3) each."""
        ones = [1] * (pixels.ndim - 2)
        focal, centre = (x.view(-1, *ones, 2) for x in (self.focal, self.centre))
        xy = (pixels - centre) / focal
        local = torch.cat([xy[..., :1], -xy[..., 1:], -torch.ones_like(xy[..., :1])], -1)
        rotation, position = self.c2w[:, :3, :3], self.c2w[:, :3, 3].view(-1, *ones, 3)
        d = torch.einsum("vij,v...j->v...i", rotation, local)
        d = d / d.norm(dim=-1, keepdim=True)
        return Rays(position.expand_as(d), d)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points (V, N, 3) or (N, 3) -> pixel positions (V, N, 2) and distances in front of the camera plane (V, N)."""
        local = torch.einsum("vij,vni->vnj", self.c2w[:, :3, :3], points - self.c2w[:, None, :3, 3])
        depth = -local[..., 2]
        uv = local[..., :2] / depth[..., None] * self.focal.new_tensor([1.0, -1.0])
        return uv * self.focal[:, None] + self.centre[:, None], depth


def _each(good: Tensor, problem: str) -> None:
    if not good.all():
        raise CameraError(f"camera {int((~good).nonzero()[0])} {problem}")


def pinhole(c2w: Tensor, fov: Tensor | float, size: tuple[int, int]) -> Cameras:
    """Cameras with the vertical field of view fov (radians, a number or (V,)), square pixels and the centre in the middle."""
    v, (height, width) = len(c2w), size
    angle = torch.as_tensor(fov, dtype=c2w.dtype, device=c2w.device).expand(v)
    focal = (0.5 * height / torch.tan(0.5 * angle))[:, None].expand(-1, 2)
    return Cameras(c2w, focal, c2w.new_tensor([0.5 * width, 0.5 * height]).expand(v, 2), size)


def look_at(position: Tensor) -> Tensor:
    """c2w (V, 4, 4) of cameras at these positions (V, 3) that look at the origin with z up; straight above or below, with +x up.

    Raises:
        CameraError: a camera at the origin.
    """
    norm = position.norm(dim=-1, keepdim=True)
    _each(norm[:, 0] > 1e-9, "is at the origin, which it should look at")
    back = position / norm
    up = torch.zeros_like(back)
    up[:, 2] = 1.0
    pole = back[:, 2].abs() > 1 - 1e-9
    up[pole] = back.new_tensor([1.0, 0.0, 0.0])
    right = torch.linalg.cross(up, back)
    right = right / right.norm(dim=-1, keepdim=True)
    c2w = torch.eye(4, dtype=position.dtype, device=position.device).repeat(len(position), 1, 1)
    c2w[:, :3] = torch.stack([right, torch.linalg.cross(back, right), back, position], -1)
    return c2w


def orbit(
    azimuth: Tensor,
    elevation: Tensor | float = 15.0,
    distance: Tensor | float = 3.0,
    fov: float = 40.0,
    size: tuple[int, int] = (64, 64),
) -> Cameras:
    """Cameras around the origin. azimuth (V,), elevation and fov in degrees; distance in the units of the world."""
    az, el, d = (
        torch.as_tensor(x, dtype=azimuth.dtype, device=azimuth.device).expand_as(azimuth)
        for x in (azimuth, elevation, distance)
    )
    az, el = torch.deg2rad(az), torch.deg2rad(el)
    position = d[:, None] * torch.stack([el.cos() * az.cos(), el.cos() * az.sin(), el.sin()], -1)
    return pinhole(look_at(position), math.radians(fov), size)


def rig(views: int = 36, fov: float = 40.0, size: tuple[int, int] = (64, 64), distance: float = 3.0) -> Cameras:
    """`views` cameras spread over the sphere by the golden angle, between 60 degrees below and 80 degrees above the horizon.

    Raises:
        CameraError: no views.
    """
    if views < 1:
        raise CameraError(f"{views} views; at least one is needed")
    k = torch.arange(views, dtype=torch.float32)
    low, high = math.sin(math.radians(-60)), math.sin(math.radians(80))
    elevation = torch.rad2deg(torch.asin(low + (high - low) * (k + 0.5) / views))
    return orbit(k * 180 * (3 - math.sqrt(5)) % 360, elevation, distance, fov, size)
