"""Consistency distillation: all states of one teacher trajectory have the same end point (arXiv:2303.01469, eq. 7).

    x_t = path.sample(x0, eps, t),    x_s = the teacher's step t -> s from x_t
    L = d( f(x_t, t), sg f^-(x_s, s) )

f is the x0 of the student, f^- its average or itself. At the clean end f is the identity by the prediction (U on a rectified flow,
c_skip and c_out of `ConsistencyPrecondition` on EDM's path).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.distances import Distance, PseudoHuber
from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.intervals import Adjacent, Intervals
from fewstep.distill.target import Target
from fewstep.distill.teacher_step import TeacherStep
from fewstep.generator import Generator
from fewstep.solvers import GammaSampling, Heun
from fewstep.train.shell import Batch, Terms

# (x, t) -> the end point of x's trajectory, both (B, ...), times (B,).
EndPoint = Callable[[Tensor, Tensor], Tensor]


def consistency_loss(
    f: EndPoint, target: EndPoint, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, distance: Distance
) -> Tensor:
    """d(f(x_t, t), sg target(x_s, s)), (B,)."""
    with torch.no_grad():
        wanted = target(x_s, s)
    return distance(f(x_t, t), wanted)


class ConsistencyDistillation(Distiller):
    """CD with any path, teacher solver, intervals and distance.

    Args:
        intervals: (t, s); step: the teacher's move between them; mu: decay of the target's average, 0 is the student itself.
        guidance: of the teacher.
    """

    sampler = GammaSampling(1.0)

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        intervals: Intervals = Adjacent(),
        step: TeacherStep = TeacherStep(Heun()),
        distance: Distance = PseudoHuber(),
        guidance: TeacherGuidance = TeacherGuidance(),
        mu: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.intervals, self.step, self.distance, self.guidance = intervals, step, distance, guidance
        self.target = Target(self.student.denoiser, mu)

    def loss(self, batch: Batch) -> Terms:
        """Consistency between the ends of one teacher step."""
        x0, cond, y = self.student.prepare(batch)
        path, w = self.teacher.denoiser.path, self.guidance.draw(x0)
        t, s = (v.to(x0.device) for v in self.intervals(len(x0), path, self.progress))
        x_t = path.sample(x0, torch.randn_like(x0), t, y)
        x_s = self.step(self.guidance.teacher(self.teacher, cond, y, w), path, x_t, t, s, y)
        cond = self.guidance.student_cond(cond, w)
        f, target = (net.bind(cond, y) for net in (self.student.denoiser, self.target.net))
        loss = consistency_loss(lambda x, t: f(x, t).x0, lambda x, t: target(x, t).x0, x_t, t, x_s, s, self.distance)
        return {"consistency": loss.mean()}

    def after_step(self) -> None:
        self.target.update()
