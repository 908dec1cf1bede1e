"""A generator is a denoiser with its way of sampling: solver, grid and number of steps. It is what trainings train and artifacts hold."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.artifacts import load_as
from fewstep.denoiser import Cond, Denoise, Denoiser
from fewstep.grids import Grid
from fewstep.guidance.cfg import Guided
from fewstep.guidance.schedules import Scale
from fewstep.sampling import Callback, Noise, sample
from fewstep.solvers.base import Solver


class Prepared(NamedTuple):
    """A batch in the space of the path: x0 (B, ...), conditions of the network, anchor y (B, ...)."""

    x0: Tensor
    cond: Cond
    y: Tensor | None


class Generator(nn.Module):
    """noise -> data in `steps` steps of `solver` on `grid`. Domains subclass it with their front end (`prepare`, `forward`).

    Args:
        denoiser: network, path and prediction.
        solver, grid, steps: how it is sampled unless told otherwise.
    """

    # Of one state, where the generator knows it.
    shape: tuple[int, ...] | None = None

    def __init__(self, denoiser: Denoiser, solver: Solver, grid: Grid, steps: int = 1) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"a generator needs at least 1 step, not {steps}")
        self.denoiser, self.solver, self.grid, self.steps = denoiser, solver, grid, steps

    def prepare(self, batch: Mapping[str, Tensor]) -> Prepared:
        """From a data batch to the space of the path; here {"x0": (B, ...)} without conditions."""
        return Prepared(batch["x0"], {}, None)

    def generate(
        self,
        noise: Tensor,
        cond: Cond | None = None,
        y: Tensor | None = None,
        steps: int | None = None,
        solver: Solver | None = None,
        generator: Noise | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> Tensor:
        """noise: (B, ...) standard normal -> (B, ...) in the space of the path; steps and solver replace the generator's own;
        generator: see `sample`."""
        path = self.denoiser.path
        grid = self.grid(path, self.steps if steps is None else steps)
        return sample(
            self.denoiser.bind(cond, y),
            self.begin(noise, y, float(grid[0])),
            path,
            solver or self.solver,
            grid,
            y,
            generator,
            callbacks,
        )

    def begin(self, noise: Tensor, y: Tensor | None = None, t: float | None = None) -> Tensor:
        """The state (B, ...) that sampling begins at, at the first time of a grid, t_max unless given.

        A network with `first_noise` (nets/noise_policy.py) has a law of its own for the noise.
        """
        tuned = getattr(self.denoiser.net, "first_noise", None)
        return self.denoiser.path.start(noise if tuned is None else tuned(noise), y, t)

    def bind(self, cond: Cond | None = None, y: Tensor | None = None, cfg: Scale | Tensor = 1.0) -> Denoise:
        """The denoiser with these conditions, guided away from `unconditional` by cfg (a number, (B,), or a schedule) unless it is 1.

        Raises:
            ValueError: guidance where there is no unconditional branch.
        """
        own = self.denoiser.bind(cond, y)
        if not isinstance(cfg, Tensor) and cfg == 1.0:
            return own
        return Guided(own, self.denoiser.bind(self.unconditional(cond or {}), y), cfg)

    def unconditional(self, cond: Cond) -> Cond:
        """The conditions of the unconditional branch beside these; domains with guidance write it.

        Raises:
            ValueError: here, where nothing is known of the conditions.
        """
        raise ValueError(f"{type(self).__name__} has no unconditional branch, so it cannot be guided")

    def mask(self, cond: Cond) -> Tensor | None:
        """1 where states with these conditions hold data and 0 where they are padded, broadcast against (B, ...); None: data everywhere.

        Losses and figures look at the data alone. Networks see to it that padding changes nothing else.
        """
        return None

    def draw_conditions(self, generator: torch.Generator) -> Cond:
        """Conditions of one random sample, each without the dimension of the batch, for teacher pairs made without data; none here."""
        return {}

    def example(self) -> Prepared:
        """Two states like the generator's, all zero, with conditions and anchor: what parts that are made for its features look at.

        Raises:
            ValueError: a generator that does not know the shape of its states.
        """
        net, first = self.denoiser.net, next(self.parameters())
        shape = self.shape or ((int(net.dim),) if isinstance(getattr(net, "dim", None), int) else None)  # pyright: ignore
        if shape is None:
            raise ValueError(f"{type(self).__name__} does not say the shape of its samples, which heads are made for")
        x0 = torch.zeros(2, *shape, dtype=first.dtype, device=first.device)
        cond = self.draw_conditions(torch.Generator().manual_seed(0))
        like = {k: v.to(first.device)[None].expand(2, *v.shape) for k, v in cond.items()}
        return Prepared(x0, like, torch.zeros_like(x0) if self.denoiser.path.anchored else None)

    def scores(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The domain's figures of own samples against a data batch, each (B,); none here."""
        return {}

    def preview(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The domain's pictures of own samples of a batch, name -> (3, H, W) in [0, 1]; none here."""
        return {}

    def forward(self, noise: Tensor) -> Tensor:
        """generate() with the generator's own settings."""
        return self.generate(noise)


def pretrained(source: str) -> Generator:
    """The generator of an artifact folder or hub id: what recipes name as their teacher.

    Raises:
        ArtifactError: see `artifacts.load_as`.
    """
    return load_as(source, Generator)
