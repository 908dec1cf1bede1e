"""The volume renderer: quadrature along rays through any field.

    C = sum_i w_i c_i + (1 - sum_i w_i) background,   depth = sum_i w_i t_i + (1 - sum_i w_i) far,   N = sum_i w_i n_i

Rays are cut to the cube [-1, 1]^3. With a `Grid` as the field this is the fast renderer: the planes are tabulated once per object
and each sample is one trilinear look-up; with the decoder's own field it is the exact one. Both are trained through.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewstep_3d.cameras import Cameras, Rays
from fewstep_3d.fields import Field, Grid, Values, slopes
from fewstep_3d.opacity import NeuS, Opacity, point_weights
from fewstep_3d.samplers import Sampler, Stratified, cube, points_at


class Rendered(NamedTuple):
    """features: (..., F) over the background; opacity, depth: (...); normals: (..., 3), weighted by opacity, zero length in the
    empty, or None where not asked for."""

    features: Tensor
    opacity: Tensor
    depth: Tensor
    normals: Tensor | None = None

    def view(self, *shape: int) -> "Rendered":
        """With the rays (B, N) in another shape."""
        parts = (None if x is None else x.reshape(*shape, *x.shape[2:]) for x in self)
        return Rendered(*parts)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Renderer:
    """How rays are rendered.

    Args:
        opacity: from signed distances to optical depths.
        sampler: where rays are sampled.
        normals: also the world normals: of a `Grid` by central differences, of other fields by automatic differentiation.
    """

    opacity: Opacity = NeuS()
    sampler: Sampler = Stratified()
    normals: bool = False

    def __call__(
        self,
        field: Field,
        rays: Rays,
        background: Tensor | float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Rendered:
        """rays (B, N, 3) -> (B, N, ...). background: a number, (F,) or (B, N, F); generator: jitters the samples."""
        if self.normals and isinstance(field, Grid):
            field = field.with_normals()
        t = self.sampler(field, rays, self.opacity, generator)
        values, slope = self._values(field, points_at(rays, t))
        sdf = values.sdf.view_as(t)
        along = None
        if slope is not None:
            along = (slope.view(*t.shape, 3) * rays.directions[:, :, None]).sum(-1)
        w, passed = point_weights(self.opacity.depth(sdf, t, along))
        f = values.features.unflatten(1, t.shape[1:])
        total = torch.einsum("bns,bnsf->bnf", w, f)
        normals = None
        if self.normals:
            total, normals = total[..., :-3], total[..., -3:]
        far = cube(rays)[1]
        opacity = 1 - passed
        return Rendered(total + passed[..., None] * background, opacity, (w * t).sum(-1) + passed * far, normals)

    def _values(self, field: Field, points: Tensor) -> tuple[Values, Tensor | None]:
        """Values with the normal as last features where asked for, and the slope of fields that are differentiated."""
        if not self.normals or isinstance(field, Grid):
            return field(points), None
        values, slope = slopes(field, points)
        features = torch.cat([values.features, normalize(slope, dim=-1, eps=1e-6)], -1)
        return Values(values.sdf, features), slope

    def views(
        self,
        field: Field,
        cameras: Cameras,
        objects: int = 1,
        background: Tensor | float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Rendered:
        """All pixels: cameras of `objects` objects one after another, V each -> (objects, V, H, W, ...)."""
        rays = flat(cameras.rays(), objects)
        return self(field, rays, background, generator).view(objects, len(cameras) // objects, *cameras.size)

    @torch.no_grad()
    def image(self, field: Field, cameras: Cameras, background: Tensor | float = 0.0, chunk: int = 2**14) -> Rendered:
        """One object without gradients, so many rays at a time: (V, H, W, ...)."""
        rays = flat(cameras.rays(), 1)
        pieces = zip(rays.origins.split(chunk, 1), rays.directions.split(chunk, 1), strict=True)
        parts = [self(field, Rays(o, d), background) for o, d in pieces]
        joined = (None if x[0] is None else torch.cat(x, 1) for x in zip(*parts, strict=True))
        return Rendered(*joined).view(len(cameras), *cameras.size)  # pyright: ignore[reportArgumentType]


def flat(rays: Rays, objects: int) -> Rays:
    """(objects V, H, W, 3) -> (objects, V H W, 3)."""
    return Rays(*(x.reshape(objects, -1, 3) for x in rays))
