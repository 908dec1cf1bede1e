"""The shell of distillation methods: a student initialised from a frozen teacher."""

import copy
from typing import ClassVar, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fewstep.generator import Generator
from fewstep.grids import Grid
from fewstep.solvers.base import Solver
from fewstep.train.schedules import Schedule
from fewstep.train.shell import Batch, Shell


class Distiller(Shell):
    """Student against a frozen teacher, one optimiser. Methods write `loss`.

    Args:
        teacher: the slow generator; its own solver, grid and steps define the trajectory to be learnt.
        steps: evaluations of the student.
        student: the generator to train; a copy of the teacher where not given.
        solver, grid: how the student is sampled; the method's `sampler` and the teacher's grid unless given.
    """

    # How students of this method are sampled; None: as the generator they begin as.
    sampler: ClassVar[Solver | None] = None

    student: Generator

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        steps: int = 1,
        student: Generator | None = None,
        solver: Solver | None = None,
        grid: Grid | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        grad_clip: float = 1.0,
        seed: int = 0,
    ) -> None:
        student = copy.deepcopy(teacher) if student is None else student
        student.steps = steps
        student.solver, student.grid = solver or self.sampler or student.solver, grid or student.grid
        super().__init__(student.train().requires_grad_(True), iterations, optimizer, schedule, grad_clip, seed)
        # Not a submodule: it is never trained, so it stays out of checkpoints, DDP and parameter counts.
        self._teacher = [teacher.eval().requires_grad_(False)]

    @property
    def teacher(self) -> Generator:
        """The frozen teacher, on the student's device."""
        if next(self._teacher[0].parameters()).device != self.device:
            self._teacher[0].to(self.device)
        return self._teacher[0]

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1]."""
        return min(self.done / self.iterations, 1.0)

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
