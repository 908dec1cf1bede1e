"""Rectified Diffusion: reflow without a flow: matched pairs are what matters, on the teacher's own path (arXiv:2410.07303).

    plain     x_t = a x + s z of a pair (z, x) of the teacher,  t ~ U:      L = d( f(x_t, t), x )
    phased    x_s = a_s x0 + s_s eps at the start of a segment [e, s] of noised data, x_e = the teacher's DDIM steps from it,
              t in (e, s], x_t on the line (distill/line.py) through x_s and x_e:      L = d( f's one step t -> e, x_e )

t is drawn among the teacher's own times in the segment, s among them: the student samples from there, where its function of t jumps.

The student keeps path and prediction, and ends with one eps along each line: a first-order path. On a rectified flow the plain loss with
the square is t^2 times reflow's. d is the pseudo-Huber distance per element with c = 0.001. On any path.

The phased student is sampled with the segments' ends as its times: here these are its own `steps` and `grid`. The official code steps its
teacher at w = 3 (2 in its own convention).
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.distances import Distance, ElementwiseHuber
from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.line import secant, step
from fewstep.distill.reflow import Reflow, data_loss
from fewstep.distill.teacher_step import TeacherStep
from fewstep.generator import Generator
from fewstep.grids.base import remembered
from fewstep.null_conditions import drop_conditions
from fewstep.paths import Path
from fewstep.solvers import DDIM
from fewstep.times import TimeSampler, UniformTimes
from fewstep.train.shell import Batch, Terms


class RectifiedDiffusion(Reflow):
    """The end point from every state of the line between the ends of each pair.

    Args:
        times: sampler of t (`IndexTimes` for networks of step indices).
        drop: probability with which a sample's conditions are replaced by those of the unconditional branch.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        times: TimeSampler = UniformTimes(),
        distance: Distance = ElementwiseHuber(),
        drop: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if not 0 <= drop <= 1:
            raise ValueError(f"drop is a probability, not {drop}")
        super().__init__(teacher, iterations, times=times, distance=distance, **kwargs)
        self.drop = drop

    def loss(self, batch: Batch) -> Terms:
        """Rectified Diffusion on a batch of pairs."""
        noise, target, _, cond, y = self.pairs(batch)
        path = self.student.denoiser.path
        t = self.times(len(noise), path).to(noise.device)
        cond, _ = drop_conditions(self.student, cond, noise, self.drop)
        f = self.student.denoiser.bind(cond, y)
        return {"distill": data_loss(f, path, noise, target, t, self.distance, y).mean()}


def phased_loss(
    f: Denoise,
    path: Path,
    x_s: Tensor,
    s: Tensor,
    x_e: Tensor,
    e: Tensor,
    t: Tensor,
    distance: Distance,
    y: Tensor | None = None,
) -> Tensor:
    """d(f's one step t -> e from the line through x_s and x_e, x_e), (B,); states (B, ...), times (B,), e < t <= s."""
    line = secant(path, x_s, s, x_e, e, y)
    x_t = path.sample(line.x0, line.eps, t, y)
    return distance(step(path, x_t, f(x_t, t).x0, t, e, y), x_e)


class PhasedRectifiedDiffusion(Distiller):
    """Rectified Diffusion inside the segments between the student's own times; needs data.

    Args:
        step: the teacher's move over a segment, whose sub-steps are the times that the student learns; guidance: of the teacher.
    """

    sampler = DDIM()

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        step: TeacherStep = TeacherStep(DDIM(), 10),
        distance: Distance = ElementwiseHuber(),
        guidance: TeacherGuidance = TeacherGuidance(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.step, self.distance = step, distance
        self.guide(guidance)

    def loss(self, batch: Batch) -> Terms:
        """A random segment and one of the teacher's times in it for each sample."""
        x0, cond, y = self.student.prepare(batch)
        path, n, w = self.teacher.denoiser.path, len(x0), self.guidance.draw(x0)
        ends = remembered(self.student.grid, path, self.student.steps)
        k = torch.randint(0, self.student.steps, (n,))
        s, e = ends[k].to(x0.device), ends[k + 1].to(x0.device)
        t = s + (e - s) * (torch.randint(0, self.step.substeps, (n,)).double() / self.step.substeps).to(x0.device)
        with torch.no_grad():
            x_s = path.sample(x0, torch.randn_like(x0), s, y)
            x_e = self.step(self.guidance.teacher(self.teacher, cond, y, w), path, x_s, s, e, y)
        f = self.student.denoiser.bind(self.guidance.student_cond(cond, w), y)
        return {"phased": phased_loss(f, path, x_s, s, x_e, e, t, self.distance, y).mean()}
