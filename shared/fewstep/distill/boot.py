"""BOOT: learn the whole trajectory from its start, step by step along itself, without data (arXiv:2306.05544).

    y_t = (x_t - s_t eps)/a_t is the signal of the trajectory that starts at eps,   dy/dt = -lambda'_t (D(x_t, t) - y_t), lambda = -log(a/s)
    bootstrap   L = d( g(eps, s), sg signal of the teacher's step t -> s from the student's own x_t ) / delta^2,    delta = t - s
    boundary    B = d( g(eps, T), D(eps, T) )

The student is a `JumpGenerator` that only jumps from T: x_t = (s_t/s_T) x_T + (a_t - a_T s_t/s_T) g(x_T, T -> t). Where a_T = 0 its g is
exactly y_t, and its jump a_t y_t + s_t eps; where a_T > 0 (EDM's path) y_T would be 0 and g still begins at D(x_T, T). So it works on any
path, and a copy of the teacher fulfils B before training. Sample it in one step.

The teacher's step is DDIM, Euler's of the signal's equation in 1 - (s_s a_t)/(a_s s_t) instead of delta lambda'. delta is counted in shares
of the time range. The paper's weight over t is left out: its values are not known to us.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.distances import Distance, SquaredL2
from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.intervals import Intervals
from fewstep.distill.line import step as line_step
from fewstep.distill.teacher_step import TeacherStep
from fewstep.generator import Generator
from fewstep.jump import JumpGenerator, jump_student
from fewstep.paths import Path, expand
from fewstep.train.shell import Batch, Terms

# t: (B,) -> g(x_T, T -> t): (B, ...) for one batch of starts.
Signal = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FixedStep(Intervals):
    """t uniform above t_min + delta, s = t - delta; delta is 1/`steps` of the time range."""

    steps: int = 25

    def __call__(self, n: int, path: Path, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        delta = (path.t_max - path.t_min) / self.steps
        t = path.t_max - (path.t_max - path.t_min - delta) * torch.rand(n, dtype=torch.float64)
        return t, (t - delta).clamp_min(path.t_min)


def signal(path: Path, x_T: Tensor, x_s: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
    """What g(x_T, T -> s) is when its jump ends at x_s: (z_s - (s_s/s_T) z_T)/(a_s - a_T s_s/s_T), z = x - b y; s < T."""
    s = s.double()
    (a_T, b_T, s_T), (a_s, b_s, s_s) = path.schedule(torch.full_like(s, path.t_max)), path.schedule(s)
    if y is not None:
        x_T, x_s = x_T - expand(b_T, x_T) * y, x_s - expand(b_s, x_s) * y
    k = s_s / s_T
    gain = 1 / (a_s - a_T * k)
    return expand(gain, x_s) * x_s - expand(gain * k, x_T) * x_T


def boot_loss(
    g: Signal,
    teacher: Denoise,
    step: TeacherStep,
    path: Path,
    x_T: Tensor,
    t: Tensor,
    s: Tensor,
    distance: Distance,
    y: Tensor | None = None,
) -> Tensor:
    """d(g(s), sg signal of the teacher's step from the student's state at t), (B,); x_T, y: (B, ...), T >= t > s: (B,)."""
    with torch.no_grad():
        x_t = line_step(path, x_T, g(t), torch.full_like(t, path.t_max), t, y)
        wanted = signal(path, x_T, step(teacher, path, x_t, t, s, y), s, y)
    return distance(g(s), wanted)


class BOOT(Distiller):
    """Bootstrapped one-step student; of a batch it uses shapes and conditions alone.

    Args:
        student: a generator of jumps; a copy of the teacher that is told the end of its jump where not given.
        intervals: (t, s); step: the teacher's move between them; guidance: of the teacher.
        boundary: weight of B.
    """

    student: JumpGenerator

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        student: Generator | None = None,
        intervals: Intervals = FixedStep(),
        step: TeacherStep = TeacherStep(),
        distance: Distance = SquaredL2(),
        guidance: TeacherGuidance = TeacherGuidance(),
        boundary: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, student=jump_student(teacher, student), **kwargs)
        self.intervals, self.step, self.distance, self.boundary = intervals, step, distance, boundary
        self.guide(guidance)

    def loss(self, batch: Batch) -> Terms:
        """Bootstrap and boundary from fresh noise."""
        x0, cond, y = self.student.prepare(batch)
        path, w = self.teacher.denoiser.path, self.guidance.draw(x0)
        t, s = (v.to(x0.device) for v in self.intervals(len(x0), path, self.progress))
        x_T, end = path.start(torch.randn_like(x0), y), torch.full_like(t, path.t_max)
        teacher = self.guidance.teacher(self.teacher, cond, y, w)
        told = self.guidance.student_cond(cond, w)

        def g(t: Tensor) -> Tensor:
            return self.student.estimate(x_T, end, t, told, y).x0

        delta = ((t - s) / (path.t_max - path.t_min)).to(x0.dtype)
        bootstrap = boot_loss(g, teacher, self.step, path, x_T, t, s, self.distance, y) / delta**2
        with torch.no_grad():
            wanted = teacher(x_T, end).x0
        return {"bootstrap": bootstrap.mean(), "boundary": self.boundary * self.distance(g(end), wanted).mean()}
