"""Shortcut models: one jump of 2d is two jumps of d, on a straight path (arXiv:2410.12557).

    U(x_t, t, s) = (x_t - G(x_t, t -> s))/(t - s), the average velocity; the velocity itself for s = t
    flow           U(x_t, t, t) = v                                          three quarters of the batch
    consistency    U(x_t, t, s) = sg (U^-(x_t, t, m) + U^-(x_m, m, s))/2     m = (t + s)/2,  x_m = x_t - (t - m)
    U^-(x_t, t, m)
    loss           mean |U - target|^2 over both

v is that of the data (training from scratch) or of a teacher, guided or not. The network is told s; the paper tells it
d = t - s. Halves shorter than any jump that is learnt ask for the velocity.
"""

from typing import Any, cast

import torch
from torch import Tensor

from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.jump_times import Halvings
from fewstep.distill.mean_flow import Average
from fewstep.distill.target import Target
from fewstep.distill.velocity import OfData, Velocity, require_straight
from fewstep.generator import Generator
from fewstep.jump import JumpGenerator, jump_student
from fewstep.null_conditions import drop_conditions
from fewstep.paths import expand
from fewstep.train.shell import Batch, Terms


@torch.no_grad()
def shortcut_target(u: Average, x_t: Tensor, t: Tensor, s: Tensor, smallest: Tensor) -> Tensor:
    """The mean of u over two halves of [s, t]; smallest: (B,) booleans, where u(x, t, t) stands for the halves."""
    m = (t + s) / 2
    first = u(x_t, t, torch.where(smallest, t, m))
    x_m = x_t - expand(t - m, x_t) * first
    return (first + u(x_m, m, torch.where(smallest, m, s))) / 2


class Shortcut(Distiller):
    """Shortcut models, from data or from a teacher.

    Args:
        student: made of the teacher unless given; a fresh `JumpGenerator` trains from scratch.
        times: the jumps; velocity: v; guidance: of the teacher, for its velocity.
        drop: share of dropped conditions.
        mu: decay of the average that targets are computed with.
    Raises:
        ValueError: paths that are not straight, students that do not jump.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        student: Generator | None = None,
        times: Halvings = Halvings(),
        velocity: Velocity = OfData(),
        guidance: TeacherGuidance = TeacherGuidance(),
        drop: float = 0.0,
        mu: float = 0.999,
        **kwargs: Any,
    ) -> None:
        require_straight(teacher.denoiser.path, "Shortcut")
        super().__init__(teacher, iterations, student=jump_student(teacher, student), **kwargs)
        self.times, self.velocity, self.drop = times, velocity, drop
        self.guide(guidance)
        self.target = Target(cast(JumpGenerator, self.student), mu)

    def loss(self, batch: Batch) -> Terms:
        """Flow matching and self-consistency, in one evaluation of the student."""
        student = cast(JumpGenerator, self.student)
        x0, cond, y = student.prepare(batch)
        cond, _ = drop_conditions(student, cond, x0, self.drop)
        path, eps, w = student.denoiser.path, torch.randn_like(x0), self.guidance.draw(x0)
        t, s, m = self.times(len(x0), path)
        near = self.times.smallest(t[:m] / 2, s[:m] / 2, path).to(x0.device)  # the halves
        t, s = t.to(x0.device), s.to(x0.device)
        x_t, told = path.sample(x0, eps, t, y), self.guidance.student_cond(cond, w)

        def rows(part: slice) -> tuple[dict[str, Tensor], Tensor | None]:
            return {k: v[part] for k, v in told.items()}, None if y is None else y[part]

        targets, jumping, flowing = [], slice(None, m), slice(m, None)
        if m:
            halves = rows(jumping)
            net = self.target.net
            targets += [shortcut_target(lambda x, t, s: net.velocity(x, t, s, *halves), x_t[:m], t[:m], s[:m], near)]
        if m < len(x0):
            c, anchor = {k: v[flowing] for k, v in cond.items()}, rows(flowing)[1]
            teacher = self.guidance.teacher(self.teacher, c, anchor, w[flowing])
            targets += [self.velocity(teacher, path, x0[m:], eps[m:], x_t[m:], t[m:], anchor)]
        error = student.velocity(x_t, t, s, told, y) - torch.cat(targets)
        return {"shortcut": error.square().flatten(1).mean(1).mean()}

    def after_step(self) -> None:
        self.target.update()
