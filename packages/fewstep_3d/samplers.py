"""Where along its ray a field is looked at.

Stratified   one sample in each of S equal parts between near and far: its middle, or a random place in it
Importance   proposals without gradient, then as many again drawn by their weights, merged (NeRF, arXiv:2003.08934, 5.2)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep_3d.cameras import Rays
from fewstep_3d.fields import Field
from fewstep_3d.opacity import Opacity, point_weights


def cube(rays: Rays, radius: float = 1.0) -> tuple[Tensor, Tensor]:
    """Distances (...) at which rays enter and leave [-radius, radius]^3; both the same where they miss it."""
    d = torch.where(rays.directions.abs() < 1e-9, torch.full_like(rays.directions, 1e-9), rays.directions)
    a, b = (-radius - rays.origins) / d, (radius - rays.origins) / d
    near = torch.minimum(a, b).amax(-1).clamp_min(0.0)
    far = torch.maximum(a, b).amin(-1)
    return near, torch.maximum(near, far)


def points_at(rays: Rays, t: Tensor) -> Tensor:
    """(B, N, 3) rays at distances (B, N, S) -> points (B, N S, 3)."""
    return (rays.origins[:, :, None] + t[..., None] * rays.directions[:, :, None]).flatten(1, 2)


@dataclass(frozen=True)
class Sampler(ABC):
    """(field, rays (B, N, 3), opacity, generator) -> increasing distances (B, N, S). Without a generator nothing is random.

    Raises:
        ValueError: fewer than two samples.
    """

    samples: int = 48

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"a ray needs at least 2 samples, not {self.samples}")

    @abstractmethod
    def __call__(self, field: Field, rays: Rays, opacity: Opacity, generator: torch.Generator | None) -> Tensor: ...


@dataclass(frozen=True)
class Stratified(Sampler):
    """S equal parts of what lies inside of the cube."""

    def __call__(self, field: Field, rays: Rays, opacity: Opacity, generator: torch.Generator | None) -> Tensor:
        near, far = cube(rays)
        return stratified(near, far, self.samples, generator)


@dataclass(frozen=True)
class Importance(Sampler):
    """`samples` proposals, then `fine` more where their weights are."""

    fine: int = 48

    def __call__(self, field: Field, rays: Rays, opacity: Opacity, generator: torch.Generator | None) -> Tensor:
        near, far = cube(rays)
        t = stratified(near, far, self.samples, generator)
        with torch.no_grad():
            sdf = field(points_at(rays, t)).sdf.view_as(t)
            weights = point_weights(opacity.depth(sdf, t))[0] + 1e-5  # rays that hit nothing are sampled evenly
        return torch.cat([t, inverted(t, weights, self.fine, generator)], -1).sort(-1).values


def stratified(near: Tensor, far: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    """One distance in each of `samples` parts of [near, far]: (...) -> (..., samples)."""
    k = torch.arange(samples, dtype=near.dtype, device=near.device).expand(*near.shape, samples)
    u = 0.5 if generator is None else uniform(k.shape, near, generator)
    return near[..., None] + (far - near)[..., None] * (k + u) / samples


def inverted(t: Tensor, weights: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    """Distances (..., samples) by the piecewise linear law whose density is proportional to the weights (..., S) at t (..., S)."""
    mass = 0.5 * (weights[..., 1:] + weights[..., :-1])
    law = torch.cat([torch.zeros_like(mass[..., :1]), mass.cumsum(-1)], -1)
    law = (law / law[..., -1:]).contiguous()
    zero = torch.zeros_like(law[..., 0])
    u = stratified(zero, zero + 1, samples, generator)
    i = torch.searchsorted(law, u).clamp(1, law.shape[-1] - 1)
    low, high = law.gather(-1, i - 1), law.gather(-1, i)
    share = (u - low) / (high - low).clamp_min(1e-12)
    return torch.lerp(t.gather(-1, i - 1), t.gather(-1, i), share.clamp(0, 1))


def uniform(shape: torch.Size, like: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn where the generator lives, in [0, 1)."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
