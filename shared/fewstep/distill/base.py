"""The shell of distillation methods: a student initialised from a frozen teacher."""

import copy
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.distances import SquaredL2, within
from fewstep.distill.guidance import TeacherGuidance
from fewstep.generator import Generator
from fewstep.grids import Grid
from fewstep.nets.adapter import trainable
from fewstep.nets.scalars import with_scalars
from fewstep.solvers.base import Solver
from fewstep.train.shell import Batch, Shell


class Distiller(Shell):
    """Student against a frozen teacher, one optimiser. Methods write `loss`.

    Methods with a guided teacher set `guidance` by `guide`; those whose networks need a further scalar condition call `tell`.

    Args:
        teacher: the slow generator; its own solver, grid and steps define the trajectory to be learnt.
        steps: evaluations of the student.
        student: the generator to train; a copy of the teacher where not given.
        solver, grid: how the student is sampled; the method's `sampler` and the teacher's grid unless given.
    """

    # How students of this method are sampled; None: as the generator they begin as.
    sampler: ClassVar[Solver | None] = None

    student: Generator
    guidance: TeacherGuidance = TeacherGuidance()

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        steps: int = 1,
        student: Generator | None = None,
        solver: Solver | None = None,
        grid: Grid | None = None,
        **kwargs: Any,
    ) -> None:
        student = copy.deepcopy(teacher) if student is None else student
        student.steps = steps
        student.solver, student.grid = solver or self.sampler or student.solver, grid or student.grid
        super().__init__(trainable(student.train()), iterations, **kwargs)
        # Not a submodule: it is never trained, so it stays out of checkpoints, DDP and parameter counts.
        self._teacher = [teacher.eval().requires_grad_(False)]

    def tell(self, name: str, scale: float, value: float) -> None:
        """Give the student's network the scalar condition `name`; for constructors, before the network is copied or optimised.

        The student computes what it did until it is trained. A student that has the condition already keeps its embedding.

        Args:
            scale: of the condition in its embedding, about 100 over its range (see `nets.embedding.Embeddings`).
            value: what the network is told by callers that give none, such as the domain's own sampling.
        Raises:
            ValueError: networks without scalar conditions.
        """
        denoiser = self.student.denoiser
        if name not in getattr(denoiser.net, "scalars", {}):
            denoiser.net = with_scalars(denoiser.net, {name: scale})
        denoiser.told = {**denoiser.told, name: value}

    def guide(self, guidance: TeacherGuidance) -> None:
        """Set the guidance of the teacher; where it says so the student is told w, and the middle of its range by other callers."""
        self.guidance = guidance
        if guidance.told:
            self.tell("w", 10.0, (guidance.low + guidance.high) / 2)

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
        """The student's samples beside those of the guided teacher from the same noise (`closeness`), and the domain's figures."""
        model = cast(Generator, model)
        x0, cond, y = model.prepare(batch)
        noise, w = torch.randn_like(x0), self.guidance.draw(x0)
        wanted = self.guidance.generate(self.teacher, noise, self.asked(cond), y, w)
        own = model.generate(noise, self.guidance.student_cond(cond, w), y)
        return self.closeness(own, wanted, model.mask(cond)) | model.scores(batch)

    def asked(self, cond: Cond) -> Cond:
        """What the teacher is asked for where the student is asked for cond."""
        return cond

    def closeness(self, own: Tensor, wanted: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """agreement: PSNR-like closeness, 10 log10(peak^2 / mse) with peak = 2; (B,)."""
        mse = within(SquaredL2(), mask)(own, wanted)
        return {"agreement": 10 * torch.log10(4 / mse.clamp_min(1e-12))}

    def preview(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        own = cast(Generator, model).preview(batch)
        return own | {f"teacher_{k}": v for k, v in self.teacher.preview(batch).items()} if own else own
