"""Fit one object's triplane to pictures of it.

    L = mean |C - C*| + mean |alpha - alpha*| + mean |N - N*|  (those that are known)  + eikonal mean (|grad f| - 1)^2

on random rays of all pictures, through the tabulated field, whose side and sharpness k grow as training goes on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep_3d.cameras import Rays
from fewstep_3d.fields import Grid
from fewstep_3d.mesh_views import Views
from fewstep_3d.metrics import psnr
from fewstep_3d.opacity import NeuS
from fewstep_3d.renderer import Rendered, Renderer
from fewstep_3d.samplers import Stratified
from fewstep_3d.scene import Scene

DECODER_RATE = 0.2


@dataclass(frozen=True)
class Fit:
    """How an object is fitted.

    Args:
        iterations: gradient steps; rays: of each.
        sides: corners of the grid at the start and, in equal shares of the training, later.
        k: sharpness of the surface at the start and at the end, geometric between.
        samples: per ray.
        lr: of Adam for the planes, and a fifth of it for the decoder; both fall to a tenth along a cosine.
        mask, normals, eikonal: factors of their terms.
    Raises:
        ValueError: counts below 1.
    """

    iterations: int = 500
    rays: int = 4096
    sides: tuple[int, ...] = (32, 48, 64)
    k: tuple[float, float] = (20.0, 128.0)
    samples: int = 64
    lr: float = 0.02
    mask: float = 0.1
    normals: float = 1.0
    eikonal: float = 0.05

    def __post_init__(self) -> None:
        if min(self.iterations, self.rays, *self.sides) < 1:
            raise ValueError(f"a fit needs at least 1 iteration and ray, not {self.iterations} and {self.rays}")

    def __call__(
        self,
        scene: Scene,
        views: Views,
        seed: int = 0,
        progress: Callable[[int, float], None] = lambda done, loss: None,
    ) -> Scene:
        """Train the scene in place. progress: told the finished iterations and the loss."""
        generator, pixels = torch.Generator().manual_seed(seed), Pixels(views)
        groups = [(scene.planes,), scene.decoder.parameters()]
        optimizer = torch.optim.Adam([{"params": p} for p in groups], lr=self.lr)
        for n in range(self.iterations):
            share = n / max(self.iterations - 1, 1)
            for group, factor in zip(optimizer.param_groups, (1.0, DECODER_RATE), strict=True):
                group["lr"] = self.lr * factor * self.rate(share)
            loss = self.loss(scene, pixels, share, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress(n + 1, loss.item())
        return scene

    def loss(self, scene: Scene, pixels: "Pixels", share: float, generator: torch.Generator) -> Tensor:
        """At this share of the training."""
        grid = scene.grid(self.side(share))
        seen = pixels.drawn(self.rays, generator)
        out = self.renderer(share, seen.normals is not None)(grid, seen.rays, pixels.background, generator)
        return torch.stack(list(self.terms(grid, out, seen).values())).sum()

    def terms(self, grid: Grid, out: Rendered, seen: "Seen") -> dict[str, Tensor]:
        """What the loss is the sum of: rendered pixels against those that were seen, and the field itself."""
        found = {"colours": l1(out.features, seen.colours), "eikonal": self.eikonal * grid.eikonal()}
        if seen.mask is not None:
            found["mask"] = self.mask * l1(out.opacity, seen.mask)
        if seen.normals is not None and out.normals is not None:
            found["normals"] = self.normals * l1(out.normals, seen.normals)
        return found

    def rate(self, share: float) -> float:
        """The factor on all learning rates at this share of the training: from 1 to a tenth along a cosine."""
        return 0.55 + 0.45 * math.cos(math.pi * share)

    def side(self, share: float = 1.0) -> int:
        """Of the grid at this share of the training."""
        return self.sides[min(int(share * len(self.sides)), len(self.sides) - 1)]

    def renderer(self, share: float = 1.0, normals: bool = True) -> Renderer:
        """That of this share of the training; 1 is what the result is rendered with."""
        return Renderer(NeuS(self.k[0] * (self.k[1] / self.k[0]) ** share), Stratified(self.samples), normals)


class Seen(NamedTuple):
    """Random pixels: rays (1, N, 3), colours (1, N, 3), mask (1, N), normals (1, N, 3)."""

    rays: Rays
    colours: Tensor
    mask: Tensor | None
    normals: Tensor | None


class Pixels:
    """All pixels of all views as one list, those whose rays miss the cube left out."""

    def __init__(self, views: Views) -> None:
        rays = views.cameras.rays()
        self.rays = Rays(*(x.reshape(-1, 3) for x in rays))
        self.colours, self.background = views.colours.reshape(-1, 3), views.background
        self.mask = None if views.mask is None else views.mask.reshape(-1)
        self.normals = None if views.normals is None else views.normals.reshape(-1, 3)

    def drawn(self, count: int, generator: torch.Generator) -> Seen:
        """`count` of them, each equally likely."""
        i = torch.randint(len(self.colours), (count,), generator=generator)
        part: Callable[[Tensor | None], Tensor | None] = lambda x: None if x is None else x[i][None]
        rays = Rays(self.rays.origins[i][None], self.rays.directions[i][None])
        return Seen(rays, self.colours[i][None], part(self.mask), part(self.normals))


def l1(a: Tensor, b: Tensor) -> Tensor:
    """mean |a - b|."""
    return (a - b).abs().mean()


@torch.no_grad()
def held_out_psnr(scene: Scene, views: Views, fit: Fit) -> dict[str, float]:
    """Mean PSNR in dB over views that the fit has not seen: of colours, and of normals mapped to [0, 1] where they are known."""
    out = fit.renderer(normals=views.normals is not None).image(scene.grid(fit.side()), views.cameras, views.background)
    figures = {"psnr": float(psnr(out.features.clamp(0, 1), views.colours).mean())}
    if views.normals is not None and out.normals is not None:
        figures["psnr_normals"] = float(psnr(0.5 + 0.5 * out.normals, 0.5 + 0.5 * views.normals).mean())
    return figures
