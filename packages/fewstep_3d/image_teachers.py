"""Diffusers image models as teachers: Stable Diffusion sees one view of an object, models like MVDream several at once.

    x0 = scaling * mean of the VAE's code of each view's picture, views one after another as channels: (B, V 4, h, w)

Self-attention over the tokens of all views (`joined`) and a camera per view as `class_labels` are what MVDream adds (arXiv:2308.16512).
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from fewstep.denoiser import Cond, Denoiser
from fewstep.grids import Grid
from fewstep.integrations.diffusers_model import parts
from fewstep.solvers.base import Solver
from fewstep_3d.cameras import Cameras
from fewstep_3d.renderer import Rendered
from fewstep_3d.rigs import Rig, azimuths
from fewstep_3d.view_prompts import ASIDE, TEXT, ViewPrompts
from fewstep_3d.view_teacher import ViewTeacher

CAMERA = "class_labels"


class PerView(nn.Module):
    """A network of single images on the views of objects: (B, V C, h, w), times (B,), conditions (B, V, ...) or (B, ...)."""

    def __init__(self, net: nn.Module, views: int, per_view: tuple[str, ...] = (TEXT, CAMERA)) -> None:
        super().__init__()
        self.net, self.views, self.per_view = net, views, per_view

    def forward(self, x: Tensor, label: Tensor, **cond: Tensor) -> Tensor:
        """Each view by itself, back in the shape of x."""
        flat = x.unflatten(1, (self.views, -1)).flatten(0, 1)
        told = {
            k: v.flatten(0, 1) if k in self.per_view else v.repeat_interleave(self.views, 0)
            for k, v in cond.items()
            if k not in ASIDE
        }
        out = self.net(flat, label.repeat_interleave(self.views), **told)
        return out.unflatten(0, (-1, self.views)).flatten(1, 2)


class JointViews:
    """A processor of diffusers' attention whose tokens are those of all views of an object."""

    def __init__(self, inner: Any, views: int) -> None:
        self.inner, self.views = inner, views

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        n, tokens = hidden_states.shape[:2]
        together = hidden_states.reshape(n // self.views, self.views * tokens, -1)
        return self.inner(attn, together, *args, **kwargs).reshape(n, tokens, -1)


def joined(model: nn.Module, views: int) -> int:
    """Let the self-attention (`attn1`) of a diffusers model look at all views; returns how many layers were changed.

    Raises:
        ValueError: none were found.
    """
    diffusers: Any = model
    processors = diffusers.attn_processors
    own = [name for name in processors if ".attn1." in f".{name}"]
    if not own:
        raise ValueError(f"{type(model).__name__} has no self-attention named attn1 to join the views in")
    diffusers.set_attn_processor({k: JointViews(v, views) if k in own else v for k, v in processors.items()})
    return len(own)


class ImageTeacher(ViewTeacher):
    """A latent image model of diffusers as a teacher of views, under prompts that depend on the view.

    Args:
        denoiser: its network takes (B, V C, h, w): see `of`.
        solver, grid, steps: how it is sampled.
        vae: diffusers' AutoencoderKL; pixels: side of the pictures that it is given.
        prompts: of the object.
        rig: of the cameras; 1 view for models of single images.
        camera: the network is told each view's camera.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        grid: Grid,
        vae: nn.Module,
        prompts: ViewPrompts,
        steps: int = 20,
        rig: Rig = Rig(views=1),
        pixels: int = 512,
        camera: bool = False,
    ) -> None:
        super().__init__(denoiser, solver, grid, steps)
        self.vae, self.prompts, self.rig, self.pixels, self.camera = vae, prompts, rig, pixels, camera
        config: Any = vae.config
        side = pixels // 2 ** (len(config.block_out_channels) - 1)
        self.scaling, self.shape = float(config.scaling_factor), (rig.views * config.latent_channels, side, side)

    @classmethod
    def of(
        cls,
        unet: nn.Module,
        scheduler: Any,
        vae: nn.Module,
        solver: Solver,
        grid: Grid,
        prompts: ViewPrompts,
        **kwargs: Any,
    ) -> "ImageTeacher":
        """From the parts of a pipeline; with several views in the rig their self-attention is joined."""
        rig = kwargs.get("rig", Rig(views=1))
        if rig.views > 1:
            joined(unet, rig.views)
        net, path, prediction = parts(unet, scheduler)
        denoiser = Denoiser(PerView(net, rig.views), path, prediction)
        return cls(denoiser, solver, grid, vae, prompts, **kwargs)

    def see(self, rendered: Rendered) -> Tensor:
        """Codes of the colours."""
        n, views = rendered.features.shape[:2]
        picture = rendered.features[..., :3].flatten(0, 1).permute(0, 3, 1, 2)
        picture = interpolate(picture, size=(self.pixels, self.pixels), mode="bilinear", align_corners=False)
        vae: Any = self.vae
        code = vae.encode(2 * picture - 1).latent_dist.mean * self.scaling
        return code.unflatten(0, (n, views)).flatten(1, 2)

    def told(self, cond: Cond, cameras: Cameras) -> Cond:
        """The prompts of the views, and the cameras where the network wants them."""
        views = self.rig.views
        found = self.prompts.at(*azimuths(cameras))
        told = {**found, TEXT: found[TEXT].unflatten(0, (-1, views))}
        if views > 1:  # Perp-Neg is of single views
            told = {TEXT: told[TEXT]}
        if self.camera:
            told[CAMERA] = self.rig.told(cameras)
        return told

    def unconditional(self, cond: Cond) -> Cond:
        """The null text."""
        return {**cond, TEXT: self.prompts.null.expand_as(cond[TEXT])}
