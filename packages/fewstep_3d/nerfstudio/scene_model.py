"""nerfstudio's model of `fewstep-triplane`: a `Scene`, rendered through its tabulated field and trained by the terms of `fitting.Fit`.

Rays are moved so that the data's scene box fills the cube [-1, 1]^3. Grid sides, sharpness and learning rates follow the share of the
training that is done, as they do in `fewstep mesh fit`; evaluation is at the final ones.
"""
# pyright: reportMissingImports=false

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor
from torch.nn import Parameter

from fewstep_3d.cameras import Rays
from fewstep_3d.fitting import Fit, Seen
from fewstep_3d.metrics import psnr
from fewstep_3d.nerfstudio.saving import saving
from fewstep_3d.renderer import Rendered
from fewstep_3d.scene import Scene
from fewstep_3d.triplane import TriplaneDecoder


@dataclass
class SceneModelConfig(ModelConfig):
    """A triplane signed-distance field of one object, rendered through a grid"""

    _target: type = field(default_factory=lambda: SceneModel)
    enable_collider: bool = False
    """Rays are cut to the scene box."""
    eval_num_rays_per_chunk: int = 2**16
    """Rays at a time in evaluation; the grid is tabulated once for each."""
    channels: int = 16
    """Of each plane."""
    resolution: int = 64
    """Pixels per side of the planes."""
    width: int = 32
    """Of both decoders."""
    layers: int = 1
    """Hidden layers of both decoders."""
    sides: tuple[int, ...] = Fit.sides
    """Corners per axis of the grid, in equal shares of the training."""
    k: tuple[float, float] = Fit.k
    """Sharpness of the surface at the start and at the end."""
    samples: int = Fit.samples
    """Per ray."""
    mask: float = Fit.mask
    """Factor of mean |opacity - alpha|, for pictures with alpha."""
    eikonal: float = Fit.eikonal
    """Factor of mean (|grad f| - 1)^2."""
    background: Literal["black", "white"] = "white"
    """Behind the object, unless the data say what is there."""


class SceneModel(Model):
    """See the module."""

    config: SceneModelConfig
    middle: Tensor

    def populate_modules(self) -> None:
        """The scene and its fit."""
        super().populate_modules()
        c = self.config
        self.scene = Scene(TriplaneDecoder(c.channels, c.width, c.layers), c.resolution)
        self.fit = Fit(sides=c.sides, k=c.k, samples=c.samples, mask=c.mask, eikonal=c.eikonal)
        self.share = 0.0
        low, high = self.scene_box.aabb
        known = (self.kwargs.get("metadata") or {}).get("background")
        self.behind = float(c.background == "white") if known is None else float(known)
        self.register_buffer("middle", (low + high) / 2, persistent=False)
        self.extent = float((high - low).max()) / 2

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """ "planes" and "decoder", each with an optimizer."""
        return {"planes": [self.scene.planes], "decoder": list(self.scene.decoder.parameters())}

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Schedules at the start of every iteration; artifacts."""
        trainer, optimizers = training_callback_attributes.trainer, training_callback_attributes.optimizers
        assert trainer is not None and optimizers is not None
        last = max(trainer.config.max_num_iterations - 1, 1)

        def begin(step: int) -> None:
            self.share = min(step / last, 1.0)
            set_rates(optimizers, self.fit.rate(self.share))

        start = TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], begin)
        return [start, *saving(training_callback_attributes, lambda: self.scene)]

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """rgb (N, 3), accumulation (N, 1), depth (N, 1) in the data's units, in evaluation also normals (N, 3) in [0, 1]; and the grid."""
        origins = (ray_bundle.origins - self.middle) / self.extent
        rays = Rays(origins[None], ray_bundle.directions[None])
        share = self.share if self.training else 1.0
        grid = self.scene.grid(self.fit.side(share))
        generator = torch.default_generator if self.training else None
        out = self.fit.renderer(share, normals=not self.training)(grid, rays, self.behind, generator)
        found = {
            "rgb": out.features[0],
            "accumulation": out.opacity[0, :, None],
            "depth": out.depth[0, :, None] * self.extent,
            "grid": grid,
        }
        if out.normals is not None:
            found["normals"] = 0.5 + 0.5 * out.normals[0]
        return found

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The terms of the fit."""
        colours, mask = self.truth(batch)
        out = Rendered(outputs["rgb"][None], outputs["accumulation"][None, :, 0], outputs["depth"][None, :, 0])
        nowhere = Rays(colours[:0], colours[:0])
        seen = Seen(nowhere, colours[None], None if mask is None else mask[None], None)
        return self.fit.terms(outputs["grid"], out, seen)

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """psnr of the rays."""
        colours, _ = self.truth(batch)
        return {"psnr": psnr(outputs["rgb"].detach().clamp(0, 1)[None], colours[None]).mean()}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """psnr of a picture; pictures beside the truth, opacity and normals."""
        colours, _ = self.truth(batch)
        own = outputs["rgb"].clamp(0, 1)
        pictures = {"img": torch.cat([colours, own], 1), "accumulation": outputs["accumulation"].expand_as(own)}
        return {"psnr": float(psnr(own[None], colours[None]).mean())}, pictures | {"normals": outputs["normals"]}

    def truth(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """(colours before the background, mask where the pictures have one), (..., 3) and (...)."""
        image = batch["image"].to(self.device)
        if image.shape[-1] == 3:
            return image, None
        mask = image[..., 3]
        return image[..., :3] * mask[..., None] + (1 - mask[..., None]) * self.behind, mask


def set_rates(optimizers: Optimizers, factor: float) -> None:
    """Learning rates: those of the configuration times a factor."""
    for name, optimizer in optimizers.optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = optimizers.config[name]["optimizer"].lr * factor
