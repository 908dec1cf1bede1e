"""One full frame at low resolution with one patch at full resolution in it: all of a picture, and its detail somewhere (TriplaneTurbo).

128 x 128 pixels by a frame of 42 x 42 and a patch of 40 x 40 are 3364 rays in place of 16384.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fewstep_3d.cameras import Cameras
from fewstep_3d.fields import Field
from fewstep_3d.renderer import Rendered, Renderer, flat


@dataclass(frozen=True)
class PatchRenderer:
    """Args:
        renderer: of both; patch: side in pixels; down: how much coarser the frame is.
    Raises:
        ValueError: sizes below 1.
    """

    renderer: Renderer = Renderer()
    patch: int = 40
    down: int = 3

    def __post_init__(self) -> None:
        if min(self.patch, self.down) < 1:
            raise ValueError(f"patch and down are at least 1, not {self.patch} and {self.down}")

    def views(
        self,
        field: Field,
        cameras: Cameras,
        objects: int = 1,
        background: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Rendered:
        """(objects, V, H, W, ...): the frame enlarged, with the patch at one random place in all views.

        Raises:
            ValueError: a patch larger than the picture.
        """
        height, width = cameras.size
        if self.patch > min(height, width):
            raise ValueError(f"a patch of {self.patch} pixels is larger than the picture, {height}x{width}")
        coarse = cameras.resized(max(height // self.down, 1), max(width // self.down, 1))
        frame = self.renderer.views(field, coarse, objects, background, generator)
        i = int(torch.randint(height - self.patch + 1, (), generator=generator))
        j = int(torch.randint(width - self.patch + 1, (), generator=generator))
        rays = cameras.rays()
        part = type(rays)(*(x[:, i : i + self.patch, j : j + self.patch] for x in rays))
        v = len(cameras) // objects
        fine = self.renderer(field, flat(part, objects), background, generator).view(objects, v, self.patch, self.patch)

        def pasted(low: Tensor | None, high: Tensor | None) -> Tensor | None:
            if low is None or high is None:
                return None
            x = low.flatten(0, 1) if low.ndim == 5 else low.flatten(0, 1)[..., None]
            x = interpolate(x.permute(0, 3, 1, 2), size=(height, width), mode="bilinear", align_corners=False)
            x = x.permute(0, 2, 3, 1).unflatten(0, (objects, v))
            x = x.clone()
            x[:, :, i : i + self.patch, j : j + self.patch] = high if high.ndim == 5 else high[..., None]
            return x if low.ndim == 5 else x[..., 0]

        return Rendered(*(pasted(a, b) for a, b in zip(frame, fine, strict=True)))  # pyright: ignore
