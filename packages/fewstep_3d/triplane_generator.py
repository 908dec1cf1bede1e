"""The student of rendering distillation: noise -> latents -> planes -> a field, in one to four evaluations (PRD, arXiv:2503.21694).

z0 = a few steps of a denoiser over latents (B, C_z, h, w);   planes = head(z0), (B, 3, C, R, R);   field = decoder(planes)
"""

from collections.abc import Mapping, Sequence

import torch
import trimesh
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from fewstep.denoiser import Cond, Denoiser
from fewstep.generator import Generator, Prepared
from fewstep.grids import Grid
from fewstep.solvers.base import Solver
from fewstep_3d.cameras import orbit
from fewstep_3d.conditions import ConditionedUNet, unwrapped, without
from fewstep_3d.fields import FieldError
from fewstep_3d.fields import Grid as FieldGrid
from fewstep_3d.meshes import extracted, largest
from fewstep_3d.metrics import pairwise_iou
from fewstep_3d.opacity import NeuS
from fewstep_3d.renderer import Renderer
from fewstep_3d.triplane import TriplaneDecoder


class PlaneHead(nn.Module):
    """Latents (B, latent, h, w) -> planes (B, 3, channels, 2 h, 2 w): two convolutions around an enlargement.

    The channels of the latents stand for all three planes, which one network then sees at once.
    """

    def __init__(self, latent: int = 12, width: int = 48, channels: int = 12) -> None:
        super().__init__()
        self.latent, self.width, self.channels = latent, width, channels
        self.first, self.second = nn.Conv2d(latent, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3 * channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = silu(self.first(z))
        h = silu(self.second(interpolate(h, scale_factor=2.0, mode="nearest")))
        return self.last(h).unflatten(1, (3, self.channels))


class TriplaneGenerator(Generator):
    """(noise, label | text | image) -> fields and meshes.

    Args:
        denoiser: its network is a `ConditionedUNet` over the latents.
        solver, grid, steps: how it is sampled.
        head: from latents to planes; decoder: from planes to fields.
        latent_side: h = w of the latents.
        side: corners per axis of the grids that are rendered and extracted.
        names: of the classes, in the order of their labels.
    Raises:
        ValueError: parts that do not fit.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        grid: Grid,
        head: PlaneHead,
        decoder: TriplaneDecoder,
        steps: int = 1,
        latent_side: int = 14,
        side: int = 28,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__(denoiser, solver, grid, steps)
        self.head, self.decoder, self.latent_side, self.side = head, decoder, latent_side, side
        self.names, self.shape = tuple(names), (head.latent, latent_side, latent_side)
        if self.net.channels != head.latent or head.channels != decoder.channels:
            raise ValueError(
                f"the network has {self.net.channels} channels and the head {head.latent}; "
                f"the head's planes {head.channels} and the decoder {decoder.channels}: each pair is equal"
            )
        if self.names and len(self.names) != self.net.classes:
            raise ValueError(f"{len(self.names)} names for {self.net.classes} classes")

    @property
    def net(self) -> ConditionedUNet:
        """Its network, or what it was before adapters."""
        return unwrapped(self.denoiser)

    def prepare(self, batch: Mapping[str, Tensor]) -> Prepared:
        """The conditions that the network wants, and latents of the right shape, all 0: there is no data of them."""
        cond = {k: batch[k] for k in self.net.wanted}
        first = next(iter(cond.values()))
        like = next(self.parameters())
        return Prepared(like.new_zeros(len(first), *(self.shape or ())), cond, None)

    def unconditional(self, cond: Cond) -> Cond:
        """The null label, text or picture."""
        return without(cond, self.net.classes)

    def table(self, latents: Tensor, side: int | None = None) -> FieldGrid:
        """The fields of latents (B, C_z, h, w) at the corners of a grid, trained through."""
        return self.decoder.tabulate(self.head(latents), side or self.side)

    @torch.no_grad()
    def forward(
        self,
        cond: Cond,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        side: int | None = None,
    ) -> FieldGrid:
        """Fields of objects with these conditions, (B, ...) each."""
        first = next(iter(cond.values()))
        noise = torch.randn(len(first), *(self.shape or ()), generator=generator).to(first.device)
        return self.table(self.generate(noise, cond, None, steps, None, generator), side)

    def label(self, name: str) -> int:
        """Of a class.

        Raises:
            ValueError: an unknown name.
        """
        if name not in self.names:
            raise ValueError(f"no class {name!r}; this model makes {', '.join(self.names) or 'classes without names'}")
        return self.names.index(name)

    def meshes(self, fields: FieldGrid) -> list[trimesh.Trimesh | None]:
        """The largest component of each object's surface; None where there is none."""
        out: list[trimesh.Trimesh | None] = []
        for values in fields.values:
            try:
                out.append(largest(extracted(FieldGrid(values[None]))))
            except FieldError:
                out.append(None)
        return out

    @torch.no_grad()
    def scores(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{"inside": (classes, M, G, G, G)} -> best IoU of a sample of every label with the members of its class, whether the
        nearest of all members is of that class, and 1 - IoU with a second sample: 0 where a class has become one shape; (B,) each."""
        if "inside" not in batch:
            return {}
        cond, side = self.prepare(batch).cond, batch["inside"].shape[-1]
        own, again = (self(cond, side=side).values[:, 0] < 0 for _ in range(2))
        best = torch.stack([pairwise_iou(own, group).amax(1) for group in batch["inside"]], 1)
        label, apart = batch["label"], 1 - pairwise_iou(own, again).diagonal()
        return {
            "iou": best.gather(1, label[:, None])[:, 0],
            "nearest": (best.argmax(1) == label).double(),
            "apart": apart,
        }

    @torch.no_grad()
    def preview(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normals of one sample of every label of the batch, side by side."""
        fields = self(self.prepare(batch).cond)
        n = len(fields.values)
        cameras = orbit(torch.full((n,), 30.0), 25.0, 3.0, 40.0, (64, 64))
        out = Renderer(NeuS(64.0), normals=True).views(fields, cameras, n)
        assert out.normals is not None
        picture = 0.5 + 0.5 * out.normals * out.opacity[..., None]
        return {"samples": picture[:, 0].permute(3, 1, 0, 2).flatten(2).clamp(0, 1)}
