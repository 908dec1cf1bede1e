"""The shell of methods that learn the average velocity of a jump, on a straight path: MeanFlow, SplitMeanFlow, shortcut models.

    U(x_t, t, s) = (x_t - G(x_t, t -> s))/(t - s) = 1/(t - s) * integral of v over [s, t],     U(x_t, t, t) = v

v is that of the data (training from scratch) or of a teacher, guided or not. The network is told s.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.jump_times import IntervalTimes, TimePairs
from fewstep.distill.velocity import OfData, Velocity, require_straight
from fewstep.generator import Generator
from fewstep.jump import JumpGenerator, jump_student
from fewstep.null_conditions import drop_conditions
from fewstep.train.shell import Batch, Terms

# (x, t, s) -> the average velocity over [s, t]; x (B, ...), times (B,).
Average = Callable[[Tensor, Tensor, Tensor], Tensor]


class Drawn(NamedTuple):
    """What a loss begins with: data x0, noise eps and the state x_t (B, ...), anchor y; times t, s (B,), of which the first m pairs differ.

    cond: of the teacher, told: of the student; kept: (B,), whose conditions were not dropped; scale: (B,) of the teacher's guidance.
    """

    x0: Tensor
    eps: Tensor
    x_t: Tensor
    y: Tensor | None
    t: Tensor
    s: Tensor
    m: int
    cond: Cond
    told: Cond
    kept: Tensor
    scale: Tensor


class AverageVelocity(Distiller):
    """Methods write `loss`.

    Args:
        student: made of the teacher unless given; a fresh `JumpGenerator` trains from scratch.
        times: (t, s); velocity: v; guidance: of the teacher, for its velocity.
        drop: share of dropped conditions.
    Raises:
        ValueError: paths that are not straight, students that do not jump.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        student: Generator | None = None,
        times: IntervalTimes = TimePairs(),
        velocity: Velocity = OfData(),
        guidance: TeacherGuidance = TeacherGuidance(),
        drop: float = 0.0,
        **kwargs: Any,
    ) -> None:
        require_straight(teacher.denoiser.path, type(self).__name__)
        super().__init__(teacher, iterations, student=jump_student(teacher, student), **kwargs)
        self.times, self.velocity, self.drop = times, velocity, drop
        self.guide(guidance)

    def drawn(self, batch: Batch) -> Drawn:
        """Conditions dropped, noise, guidance and times drawn, in this order."""
        student = cast(JumpGenerator, self.student)
        x0, cond, y = student.prepare(batch)
        cond, kept = drop_conditions(student, cond, x0, self.drop)
        path, eps, scale = student.denoiser.path, torch.randn_like(x0), self.guidance.draw(x0)
        t, s, m = self.times(len(x0), path)
        t, s = t.to(x0.device), s.to(x0.device)
        told = self.guidance.student_cond(cond, scale)
        return Drawn(x0, eps, path.sample(x0, eps, t, y), y, t, s, m, cond, told, kept, scale)


class ConsistentAverage(AverageVelocity):
    """Flow matching where s = t, and beyond a target made of the student's own shorter jumps: methods write `interval_target`.

    loss   mean |U(x_t, t, s) - target|^2, in one evaluation with gradient
    """

    # Of the loss, in logs.
    term: ClassVar[str]

    @abstractmethod
    def interval_target(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond, y: Tensor | None) -> Tensor:
        """What U(x_t, t, s) should be, without gradient; x_t: (B, ...), t > s: (B,)."""

    def loss(self, batch: Batch) -> Terms:
        """The square over both shares of the batch."""
        x0, eps, x_t, y, t, s, m, cond, told, _, w = self.drawn(batch)
        student = cast(JumpGenerator, self.student)

        def rows(cond: Cond, part: slice) -> tuple[Cond, Tensor | None]:
            return {k: v[part] for k, v in cond.items()}, None if y is None else y[part]

        targets, jumping, flowing = [], slice(None, m), slice(m, None)
        if m:
            targets += [self.interval_target(x_t[:m], t[:m], s[:m], *rows(told, jumping))]
        if m < len(x0):
            own = rows(cond, flowing)
            teacher = self.guidance.teacher(self.teacher, *own, w[m:])
            targets += [self.velocity(teacher, student.denoiser.path, x0[m:], eps[m:], x_t[m:], t[m:], own[1])]
        error = student.velocity(x_t, t, s, told, y) - torch.cat(targets)
        return {self.term: error.square().flatten(1).mean(1).mean()}
