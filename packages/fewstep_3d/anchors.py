"""Anchors: samples of the teacher, or data, that the student's noise is tied to, so that what score distillation makes of it keeps their variety.

SDS seeks modes: whatever the noise, a class becomes one shape. Here every class has N samples x_i of the teacher, all looked at by one rig, and the
student's object is pulled to one of them where that rig sees it; score distillation, at times of little noise, makes plausible what it does not see.
Samples have the teacher's faults. Renders of the data have none (as DMD2's GAN loss on data, arXiv:2405.14867, lets a student exceed its teacher),
but then the student needs data, which score distillation does not.

    u_ik = the k-th principal component of x_i in its class          c_ik = Phi^-1((rank of u_ik + 1/2) / N),   k < numbers
    noise z ~ N(0, I) with its numbers sqrt(h w) mean(z_k) set to c_ik      dL/dx = factor weight (x - x_i) / D

Knowledge distillation (arXiv:2101.02388) through the renderer, but for the pairs: in the teacher's own map from noise to shapes, sizes are hard to
find (the means of its noise explain, linearly, half of the variance of a sphere's), so samples are put in order and given noise by their ranks.
Each number is N(0, 1), as that of fresh noise; several are uncorrelated, not independent.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.distill.score_gradient import ScoreWeight, projected, score_gradient
from fewstep.distill.sds import BySoftError
from fewstep.paths import Path
from fewstep_3d.cameras import Cameras
from fewstep_3d.fields import Grid
from fewstep_3d.rigs import Rig
from fewstep_3d.shape_data import ShapeViews
from fewstep_3d.view_teacher import ViewTeacher


class Anchors(nn.Module):
    """The samples of all classes and their numbers, made when they are first asked for, and kept in checkpoints.

    Args:
        count: N samples of each class; numbers: of principal components.
        steps: of the teacher's own solver.
        azimuth, elevation: of the rig's first view, degrees.
        factor, weight: of the pull.
        seed: of the samples.
        data: renders of members of its classes, which are the student's in the same order, in place of samples of the teacher.
    Raises:
        ValueError: less than 2 samples, numbers that are not 1 to N; other numbers of classes in the data than the student has.
    """

    def __init__(
        self,
        count: int = 96,
        numbers: int = 6,
        steps: int = 8,
        azimuth: float = 0.0,
        elevation: float = 20.0,
        factor: float = 2.0,
        weight: ScoreWeight = BySoftError(0.05),
        seed: int = 0,
        data: ShapeViews | None = None,
    ) -> None:
        super().__init__()
        if count < 2 or not 1 <= numbers <= count:
            raise ValueError(f"anchors are at least 2 samples, with 1 to as many numbers, not {count} and {numbers}")
        self.count, self.numbers, self.steps, self.azimuth, self.elevation = count, numbers, steps, azimuth, elevation
        self.factor, self.weight, self.seed, self.data = factor, weight, seed, data
        self.samples: Tensor
        self.codes: Tensor
        self.register_buffer("samples", torch.zeros(0))
        self.register_buffer("codes", torch.zeros(0))

    def cameras(self, rig: Rig, objects: int) -> Cameras:
        """Those that all anchors are seen by, (objects V,) of them."""
        return rig.at(torch.full((objects,), self.azimuth), torch.full((objects,), self.elevation))

    def draw(self, label: Tensor, teacher: ViewTeacher, classes: int) -> tuple[Tensor, Tensor]:
        """Random anchors of these classes: samples (B, V C, h, w), numbers (B, K)."""
        if not len(self.codes):
            self.fill(teacher, classes)
        i = torch.randint(self.count, (len(label),), device=label.device)
        return self.samples[label, i], self.codes[label, i]

    @torch.no_grad()
    def fill(self, teacher: ViewTeacher, classes: int) -> None:
        """Sample the teacher, or look at the data as it does, class after class."""
        if self.data is not None and len(self.data.names) != classes:
            raise ValueError(f"anchors of {len(self.data.names)} classes of data for a student of {classes}")
        generator, device = torch.Generator().manual_seed(self.seed), next(teacher.parameters()).device
        seen = self._sampled if self.data is None else self._rendered
        samples = [seen(c, teacher, generator).to(device) for c in range(classes)]
        self.samples = torch.stack(samples)
        self.codes = torch.stack([normal_scores(x.flatten(1), self.numbers) for x in samples])

    def _sampled(self, label: int, teacher: ViewTeacher, generator: torch.Generator) -> Tensor:
        device = next(teacher.parameters()).device
        noise = torch.randn(self.count, *(teacher.shape or ()), generator=generator).to(device)
        labels = torch.full((self.count,), label, device=device)
        cond = teacher.told({"label": labels}, self.cameras(teacher.rig, self.count).to(device))
        return teacher.generate(noise, cond, steps=self.steps)

    def _rendered(self, label: int, teacher: ViewTeacher, generator: torch.Generator) -> Tensor:
        assert self.data is not None
        views, chunks = self.data.renderer.views, self.data.objects(label, self.count, generator)[:, None].split(16)
        cameras = [self.cameras(teacher.rig, len(chunk)) for chunk in chunks]
        return torch.cat([teacher.see(views(Grid(g), c, len(g))) for g, c in zip(chunks, cameras, strict=True)])

    def pull(self, x: Tensor, samples: Tensor, path: Path) -> Tensor:
        """(B,) whose gradient with respect to x is factor weight (x - samples) / D; views x of objects and samples: (B, V C, h, w)."""
        weight = self.factor * self.weight(x, samples, x.new_zeros(len(x)), path)
        return projected(x, score_gradient(x, x.detach(), samples, weight))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Make room for what a checkpoint holds."""
        for name in ("samples", "codes"):
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.zeros_like(state_dict[f"{prefix}{name}"], device=self.codes.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def normal_scores(x: Tensor, numbers: int) -> Tensor:
    """Ranks of the first principal components of x: (N, D) as quantiles of N(0, 1), (N, numbers); signs are arbitrary."""
    components = torch.linalg.svd(x - x.mean(0), full_matrices=False)[0][:, :numbers]
    ranks = components.argsort(0).argsort(0)
    return torch.special.ndtri((ranks.double() + 0.5) / len(x)).to(x.dtype)


def tied(noise: Tensor, codes: Tensor) -> Tensor:
    """Noise (B, C, h, w) whose first channels have the means codes / sqrt(h w), (B, K <= C)."""
    k, cells = codes.shape[1], noise.shape[-1] * noise.shape[-2]
    shift = codes / cells**0.5 - noise[:, :k].mean((2, 3))
    return torch.cat([noise[:, :k] + shift[:, :, None, None], noise[:, k:]], 1)
