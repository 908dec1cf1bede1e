"""SplitMeanFlow: the average velocity of an interval is that of its two parts, on a straight path (arXiv:2507.16884).

    U(x_t, t, r) = 1/(t - r) * integral of v over [r, t],  U(x_t, t, t) = v
    identity       U(x_t, t, r) = l U(x_t, t, m) + (1 - l) U(x_m, m, r)      m = t - l (t - r),  x_m = x_t - (t - m) U(x_t, t, m)
    loss           mean |U(x_t, t, r) - sg(right-hand side)|^2,  l ~ U(0, 1);  |U(x_t, t, t) - v|^2 where r = t

It is MeanFlow without a derivative (its identity is the limit l -> 0), and the shortcut model's with a free split in place of halves.
v is that of the data, or of a teacher, guided or not.
"""

from typing import Any, cast

import torch
from torch import Tensor

from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.jump_times import TimePairs
from fewstep.distill.mean_flow import Average
from fewstep.distill.velocity import OfData, Velocity, require_straight
from fewstep.generator import Generator
from fewstep.jump import JumpGenerator, jump_student
from fewstep.null_conditions import drop_conditions
from fewstep.paths import expand
from fewstep.train.shell import Batch, Terms


@torch.no_grad()
def split_target(u: Average, x_t: Tensor, t: Tensor, r: Tensor, share: Tensor) -> Tensor:
    """share u(x_t, t, m) + (1 - share) u(x_m, m, r), m = t - share (t - r); x_t: (B, ...), t, r and share: (B,)."""
    m, part = t - share * (t - r), expand(share, x_t)
    first = u(x_t, t, m)
    second = u(x_t - expand(t - m, x_t) * first, m, r)
    return torch.lerp(second, first, part.to(first))


class SplitMeanFlow(Distiller):
    """SplitMeanFlow from data or from a teacher.

    Args:
        student: made of the teacher unless given; a fresh `JumpGenerator` trains from scratch.
        times: (t, r); velocity: v; guidance: of the teacher, for its velocity.
        drop: share of dropped conditions.
    Raises:
        ValueError: paths that are not straight, students that do not jump.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        student: Generator | None = None,
        times: TimePairs = TimePairs(),
        velocity: Velocity = OfData(),
        guidance: TeacherGuidance = TeacherGuidance(),
        drop: float = 0.0,
        **kwargs: Any,
    ) -> None:
        require_straight(teacher.denoiser.path, "SplitMeanFlow")
        super().__init__(teacher, iterations, student=jump_student(teacher, student), **kwargs)
        self.times, self.velocity, self.drop = times, velocity, drop
        self.guide(guidance)

    def loss(self, batch: Batch) -> Terms:
        """The identity where r < t, flow matching where r = t, in one evaluation with gradient."""
        student = cast(JumpGenerator, self.student)
        x0, cond, y = student.prepare(batch)
        cond, _ = drop_conditions(student, cond, x0, self.drop)
        path, eps, w = student.denoiser.path, torch.randn_like(x0), self.guidance.draw(x0)
        t, r, n = self.times(len(x0), path)
        share = torch.rand(n, dtype=t.dtype).to(x0.device)
        t, r = t.to(x0.device), r.to(x0.device)
        x_t, told = path.sample(x0, eps, t, y), self.guidance.student_cond(cond, w)
        # The first n pairs may differ; the others ask for the velocity.
        split = {k: v[:n] for k, v in told.items()}, None if y is None else y[:n]
        flow = {k: v[n:] for k, v in cond.items()}, None if y is None else y[n:]
        targets = []
        if n:
            targets += [split_target(lambda x, t, s: student.velocity(x, t, s, *split), x_t[:n], t[:n], r[:n], share)]
        if n < len(x0):
            teacher = self.guidance.teacher(self.teacher, *flow, w[n:])
            targets += [self.velocity(teacher, path, x0[n:], eps[n:], x_t[n:], t[n:], flow[1])]
        error = student.velocity(x_t, t, r, told, y) - torch.cat(targets)
        return {"split_mean_flow": error.square().flatten(1).mean(1).mean()}
