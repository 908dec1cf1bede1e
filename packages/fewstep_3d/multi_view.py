"""Multi-view diffusion models: all views of an object are denoised together, told their cameras (MVDream, arXiv:2308.16512).

    x0 = the views' channels one after another, (B, V C, H, W);  per view: world normals times opacity, 2 opacity - 1   (C = 4)

Normals are world ones, so that views agree where they see the same surface. All numbers are in [-1, 1], backgrounds (0, 0, 0, -1).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.artifacts import load_as
from fewstep.denoiser import Cond, Denoiser
from fewstep.generator import Prepared
from fewstep.grids import Grid
from fewstep.solvers.base import Solver
from fewstep_3d.cameras import Cameras
from fewstep_3d.conditions import ConditionedUNet, unwrapped, without
from fewstep_3d.renderer import Rendered
from fewstep_3d.rigs import Rig
from fewstep_3d.view_teacher import ViewTeacher

CHANNELS = 4


def stacked(rendered: Rendered) -> Tensor:
    """Views (B, V, H, W, ...) with normals -> (B, 4 V, H, W) in [-1, 1]."""
    if rendered.normals is None:
        raise ValueError("a multi-view model of normals needs a renderer with normals")
    x = torch.cat([rendered.normals, 2 * rendered.opacity[..., None] - 1], -1)
    return x.movedim(-1, 2).flatten(1, 2)


def masks(x0: Tensor) -> Tensor:
    """Opacities (B, V, H, W) in [0, 1] of stacked views."""
    return ((x0.unflatten(1, (-1, CHANNELS))[:, :, 3] + 1) / 2).clamp(0, 1)


class MultiViewGenerator(ViewTeacher):
    """(noise, label | text | image, camera) -> stacked views.

    Args:
        denoiser: its network is a `ConditionedUNet` over 4 V channels that is told V cameras.
        solver, grid, steps: how it is sampled.
        rig: of its cameras.
    Raises:
        ValueError: a network for other channels or numbers of views than the rig has.
    """

    def __init__(self, denoiser: Denoiser, solver: Solver, grid: Grid, steps: int = 20, rig: Rig = Rig()) -> None:
        super().__init__(denoiser, solver, grid, steps)
        self.rig, self.shape = rig, (CHANNELS * rig.views, rig.size, rig.size)
        net = self.net
        if net.views != rig.views or net.channels != self.shape[0]:
            raise ValueError(
                f"{rig.views} views need a network of {self.shape[0]} channels that is told {rig.views} cameras, "
                f"not {net.channels} and {net.views}"
            )

    @property
    def net(self) -> ConditionedUNet:
        """Its network, or what it was before adapters."""
        return unwrapped(self.denoiser)

    def prepare(self, batch: Mapping[str, Tensor]) -> Prepared:
        """{"x0": (B, 4 V, H, W), "camera": (B, V, 16), "label" | "text" | "image"} -> x0 and what the network wants."""
        return Prepared(batch["x0"], {k: batch[k] for k in self.net.wanted}, None)

    def unconditional(self, cond: Cond) -> Cond:
        """The null label, text or picture, and the same cameras."""
        return without(cond, self.net.classes)

    def draw_conditions(self, generator: torch.Generator) -> Cond:
        """A random label and rig; null text and picture."""
        net, cond = self.net, {"camera": self.rig.told(self.rig.draw(1, generator))[0]}
        if net.classes:
            cond["label"] = torch.randint(net.classes, (), generator=generator)
        if net.text:
            cond["text"] = torch.zeros(net.text)
        if net.image:
            cond["image"] = torch.zeros(net.image, self.rig.size, self.rig.size)
        return cond

    def see(self, rendered: Rendered) -> Tensor:
        """Rendered views (B, V, H, W, ...) in the space of this model."""
        return stacked(rendered)

    def told(self, cond: Cond, cameras: Cameras) -> Cond:
        """Conditions of the objects, and the cameras of their views, as this model is told them."""
        return {**cond, "camera": self.rig.told(cameras).to(next(self.parameters()))}


def pretrained_views(source: str) -> MultiViewGenerator:
    """The multi-view model of an artifact folder or hub id: what recipes name as their teacher.

    Raises:
        ArtifactError: none there, or of another kind.
    """
    return load_as(source, MultiViewGenerator)
