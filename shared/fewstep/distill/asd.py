"""Asynchronous score distillation: the frozen teacher at a later time stands for the fake score (PRD/TriplaneTurbo, arXiv:2503.21694).

    x_t and x_{t+d} with the same eps,   d = ratio (t - t_min) u,   u ~ U[0, 1]
    dL/dx0 = weight (D_phi(x_{t+d}, t+d) - D^w_phi(x_t, t)),   weight = 1 / mean|x0 - D^w_phi|

Nothing is trained beside the student. The later time is noisier, so its x0 is nearer the mean of all that x0 could be: what the fake score of a
converged student would say is bounded by it. The unguided teacher takes that part, so that with ratio = 0 the gradient is the guidance's.
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.distill.alternating import AlternatingDistiller, Drawn
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.rollout import Reached
from fewstep.distill.score_gradient import ByTeacherError, ScoreWeight, projected, score_gradient
from fewstep.generator import Generator
from fewstep.paths import Path
from fewstep.solvers import GammaSampling
from fewstep.times import TimeSampler, UniformTimes
from fewstep.train.shell import Batch, Terms


def asd_loss(
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    later: Tensor,
    teacher: Denoise,
    stand_in: Denoise,
    path: Path,
    weight: ScoreWeight,
    y: Tensor | None = None,
) -> Tensor:
    """(B,) whose gradient with respect to x0: (B, ...) is weight (stand_in(x_later) - teacher(x_t)) / D. t <= later: (B,)."""
    with torch.no_grad():
        wanted = teacher(path.sample(x0, eps, t, y), t).x0
        own = stand_in(path.sample(x0, eps, later, y), later).x0
    return projected(x0, score_gradient(x0, own, wanted, weight(x0, wanted, t, path)))


class ASD(AlternatingDistiller):
    """ASD without critics.

    Args:
        ratio_later: the largest d as a share of t - t_min, .1 for some of the paper's teachers.
        guidance: of the teacher at t.
        times: t; weight: of the difference.
    """

    sampler = GammaSampling(1.0)

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        ratio_later: float = 0.1,
        guidance: TeacherGuidance = TeacherGuidance(),
        times: TimeSampler = UniformTimes(0.02),
        weight: ScoreWeight = ByTeacherError(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.ratio_later, self.times, self.weight = ratio_later, times, weight
        self.guide(guidance)

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """asd_loss at one time of every sample's path."""
        (_, cond, y, w), x0, path = drawn, reached.estimate.x0, self.teacher.denoiser.path
        t = self.times(len(x0), path).to(x0.device)
        later = (t + self.ratio_later * (t - path.t_min) * torch.rand_like(t)).clamp_max(path.t_max)
        guided, plain = self.guidance.teacher(self.teacher, cond, y, w), self.teacher.bind(cond, y)
        loss = asd_loss(x0, torch.randn_like(x0), t, later, guided, plain, path, self.weight, y)
        return {"score": loss.mean()}

    def critic_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """There are none."""
        return {}
