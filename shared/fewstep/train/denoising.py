"""Train a teacher: denoising regression on a path, | out - (p x0 + q eps + r y) |^2 in the prediction's own units."""

from typing import cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoiser
from fewstep.generator import Generator
from fewstep.times import TimeSampler, UniformTimes
from fewstep.train.schedules import Schedule
from fewstep.train.shell import Batch, Shell, Terms


def denoising_loss(
    denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, cond: Cond | None = None, y: Tensor | None = None
) -> Tensor:
    """Mean square of out - target at x_t = a x0 + b y + s eps, shape (B,).

    With a preconditioner the target has unit variance at every t, so this is EDM's weighting (arXiv:2206.00364, eq. 8).
    """
    x_t = denoiser.path.sample(x0, eps, t, y)
    target = denoiser.prediction.target(x0, eps, denoiser.path.coeffs(t, x0), y)
    return (denoiser.raw(x_t, t, cond, y) - target).square().flatten(1).mean(1)


class Denoising(Shell):
    """Train the denoiser of a generator; its `prepare` turns data batches into (x0, cond, y).

    Args:
        student: the generator whose denoiser is trained (named like every trained network).
        times: sampler of training times.
    """

    student: Generator

    def __init__(
        self,
        student: Generator,
        iterations: int,
        times: TimeSampler | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        grad_clip: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(student, iterations, optimizer, schedule, grad_clip, seed)
        self.times = times or UniformTimes()

    def loss(self, batch: Batch) -> Terms:
        """Denoising regression at times drawn by `times`."""
        x0, cond, y = self.student.prepare(batch)
        t = self.times(len(x0), self.student.denoiser.path).to(x0.device)
        return {"denoising": denoising_loss(self.student.denoiser, x0, torch.randn_like(x0), t, cond, y).mean()}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The denoising loss on held-out data, and the domain's own figures of the model's samples."""
        assert isinstance(model, Generator)
        x0, cond, y = model.prepare(batch)
        t = self.times(len(x0), model.denoiser.path).to(x0.device)
        return {"denoising": denoising_loss(model.denoiser, x0, torch.randn_like(x0), t, cond, y)} | model.scores(batch)

    def preview(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return cast(Generator, model).preview(batch)
