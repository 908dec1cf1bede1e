"""Train a teacher: denoising regression on a path, | out - (p x0 + q eps + r y) |^2 in the prediction's own units."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoiser
from fewstep.distances import SquaredL2, within
from fewstep.generator import Generator
from fewstep.null_conditions import drop_conditions
from fewstep.times import TimeSampler, UniformTimes
from fewstep.train.shell import Batch, Shell, Terms


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    cond: Cond | None = None,
    y: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean square of out - target at x_t = a x0 + b y + s eps, shape (B,); over the mask where there is one.

    With a preconditioner the target has unit variance at every t, so this is EDM's weighting (arXiv:2206.00364, eq. 8).
    """
    x_t = denoiser.path.sample(x0, eps, t, y)
    target = denoiser.prediction.target(x0, eps, denoiser.path.coeffs(t, x0), y)
    return within(SquaredL2(), mask)(denoiser.raw(x_t, t, cond, y), target)


class Denoising(Shell):
    """Train the denoiser of a generator; its `prepare` turns data batches into (x0, cond, y).

    Args:
        student: the generator whose denoiser is trained (named like every trained network).
        times: sampler of training times.
        drop: share of the samples that are trained with `student.unconditional` in place of their conditions, so that the teacher can
            be guided (arXiv:2207.12598, algorithm 1; 0.1 to 0.2 there).
    Raises:
        ValueError: `drop` outside of [0, 1].
    """

    student: Generator

    def __init__(
        self,
        student: Generator,
        iterations: int,
        times: TimeSampler | None = None,
        drop: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, iterations, **kwargs)
        if not 0 <= drop <= 1:
            raise ValueError(f"drop is a share in [0, 1], not {drop}")
        self.times, self.drop = times or UniformTimes(), drop

    def loss(self, batch: Batch) -> Terms:
        """Denoising regression at times drawn by `times`."""
        x0, cond, y = self.student.prepare(batch)
        cond, _ = drop_conditions(self.student, cond, x0, self.drop)
        t = self.times(len(x0), self.student.denoiser.path).to(x0.device)
        mask, eps = self.student.mask(cond), torch.randn_like(x0)
        return {"denoising": denoising_loss(self.student.denoiser, x0, eps, t, cond, y, mask).mean()}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The denoising loss on held-out data, and the domain's own figures of the model's samples."""
        assert isinstance(model, Generator)
        x0, cond, y = model.prepare(batch)
        t = self.times(len(x0), model.denoiser.path).to(x0.device)
        loss = denoising_loss(model.denoiser, x0, torch.randn_like(x0), t, cond, y, model.mask(cond))
        return {"denoising": loss} | model.scores(batch)

    def preview(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return cast(Generator, model).preview(batch)
