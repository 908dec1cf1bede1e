"""The shell of distillation methods: a student initialised from a frozen teacher."""

import copy
from typing import cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fewstep.generator import Generator
from fewstep.train.schedules import Schedule
from fewstep.train.shell import Batch, Shell


class Distiller(Shell):
    """Student against a frozen teacher, one optimiser. Methods write `loss`.

    Args:
        teacher: the slow generator; its own solver, grid and steps define the trajectory to be learnt.
        steps: evaluations of the student.
        student: the network to train; a copy of the teacher where not given.
    """

    student: Generator

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        steps: int = 1,
        student: Generator | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        grad_clip: float = 1.0,
        seed: int = 0,
    ) -> None:
        student = copy.deepcopy(teacher) if student is None else student
        student.steps = steps
        super().__init__(student.train().requires_grad_(True), iterations, optimizer, schedule, grad_clip, seed)
        # Not a submodule: it is never trained, so it stays out of checkpoints, DDP and parameter counts.
        self._teacher = [teacher.eval().requires_grad_(False)]

    @property
    def teacher(self) -> Generator:
        """The frozen teacher, on the student's device."""
        if next(self._teacher[0].parameters()).device != self.device:
            self._teacher[0].to(self.device)
        return self._teacher[0]

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """agreement: PSNR-like closeness to the teacher from the same noise, 10 log10(peak^2 / mse) with peak = 2; plus the domain's figures."""
        model = cast(Generator, model)
        x0, cond, y = model.prepare(batch)
        noise = torch.randn_like(x0)
        mse = (model.generate(noise, cond, y) - self.teacher.generate(noise, cond, y)).square().flatten(1).mean(1)
        return {"agreement": 10 * torch.log10(4 / mse.clamp_min(1e-12))} | model.scores(batch)

    def preview(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        own = cast(Generator, model).preview(batch)
        return own | {f"teacher_{k}": v for k, v in self.teacher.preview(batch).items()} if own else own
