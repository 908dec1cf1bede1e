"""Generators of classes: the condition is `label`, and the null label stands for no condition."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fewstep.denoiser import Cond, Denoiser
from fewstep.generator import Generator, Prepared
from fewstep.grids import Grid
from fewstep.sampling import Callback, sample
from fewstep.solvers.base import Solver


@dataclass(frozen=True)
class Judge(ABC):
    """What samples are worth: figures of a classifier, or of anything else that looks at images."""

    @abstractmethod
    def __call__(self, samples: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """samples: (B, C, H, W) in [-1, 1] of the labels of a data batch -> figures, each (B,)."""


class ClassGenerator(Generator):
    """(noise, label) -> samples (B, ...): images (B, C, H, W) in [-1, 1], or anything else that comes in classes.

    Args:
        denoiser: its network takes `label` and has `classes`: labels are 0 .. classes - 1, and `classes` is the null label.
        solver, grid, steps: how it is sampled.
        shape: of one sample; (C, H, W) of images, which alone are previewed.
        judge: gives the figures that are logged at validation.
    Raises:
        ValueError: networks without classes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        grid: Grid,
        steps: int = 1,
        shape: Sequence[int] = (1, 8, 8),
        judge: Judge | None = None,
    ) -> None:
        super().__init__(denoiser, solver, grid, steps)
        if self.classes < 1:
            raise ValueError(
                f"ClassGenerator needs a network with classes; this {type(denoiser.net).__name__} has none"
            )
        self.shape, self.judge = tuple(shape), judge

    @property
    def classes(self) -> int:
        """How many the network knows; also the null label."""
        return int(getattr(self.denoiser.net, "classes", 0))

    def prepare(self, batch: Mapping[str, Tensor]) -> Prepared:
        """{"x0": (B, ...), "label": (B,)} -> x0, {"label"}."""
        return Prepared(batch["x0"], {"label": batch["label"]}, None)

    def unconditional(self, cond: Cond) -> Cond:
        """The same with the null label."""
        return {**cond, "label": torch.full_like(cond["label"], self.classes)}

    def draw_conditions(self, generator: torch.Generator) -> Cond:
        """A label, each equally likely."""
        return {"label": torch.randint(self.classes, (), generator=generator)}

    def forward(
        self,
        label: Tensor,
        steps: int | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        cfg: float = 1.0,
        callbacks: Iterable[Callback] = (),
    ) -> Tensor:
        """Samples of labels (B,); noise: (B, ...), drawn from `generator` where not given; cfg: guidance scale, 1 is none."""
        if noise is None:
            device = label.device if generator is None else generator.device
            noise = torch.randn(len(label), *(self.shape or ()), generator=generator, device=device).to(label.device)
        cond = {"label": label}
        if cfg == 1.0:
            return self.generate(noise, cond, None, steps, solver, generator, callbacks)
        path = self.denoiser.path
        grid = self.grid(path, self.steps if steps is None else steps)
        start = self.begin(noise, None, float(grid[0]))
        return sample(self.bind(cond, None, cfg), start, path, solver or self.solver, grid, None, generator, callbacks)

    def scores(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the judge says of samples with the labels of the batch."""
        if self.judge is None:
            return {}
        return self.judge(self(batch["label"], noise=torch.randn_like(batch["x0"])).clamp(-1, 1), batch)

    def preview(self, batch: Mapping[str, Tensor], rows: int = 6, zoom: int = 4) -> dict[str, Tensor]:
        """A grid of samples, one column for each of the first ten classes; none of what is no image."""
        if len(self.shape or ()) != 3:
            return {}
        columns = min(self.classes, 10)
        label = torch.arange(columns, device=batch["x0"].device).repeat(rows)
        images = ((self(label) + 1) / 2).clamp(0, 1).unflatten(0, (rows, columns))
        picture = images.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        picture = interpolate(picture[None], scale_factor=float(zoom), mode="nearest")[0]
        return {"samples": picture.expand(3, -1, -1)} if len(picture) in (1, 3) else {}
