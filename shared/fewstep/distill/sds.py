"""Score distillation sampling: the teacher's estimate of a noised sample is where the sample should go (DreamFusion, arXiv:2209.14988).

    dL/dx0 = weight (x0 - D^w_phi(x_t)) / D  =  weight (s_t/a_t) (eps^w_phi - eps) / D

It seeks modes: samples of different noise become alike. DMD and VSD put a score of the student in the place of x0.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise
from fewstep.distill.alternating import AlternatingDistiller, Drawn
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.rollout import Reached
from fewstep.distill.score_gradient import ScoreWeight, projected, score_gradient
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.paths import Path
from fewstep.solvers import GammaSampling
from fewstep.times import TimeSampler, UniformTimes
from fewstep.train.shell import Batch, Terms


@dataclass(frozen=True)
class BySoftError(ScoreWeight):
    """1 / (mean |x0 - D_phi| + soft): DMD's weight, bounded (PRD's official code with soft = .1)."""

    soft: float = 0.1

    def __call__(self, x0: Tensor, teacher: Tensor, t: Tensor, path: Path) -> Tensor:
        return 1 / ((x0 - teacher).detach().abs().flatten(1).mean(1) + self.soft)


class ClampedGuidance(TeacherGuidance):
    """Guidance whose x0 stays within [-most, most]: small teachers leave the range of the data when they are guided."""

    def __init__(self, low: float = 1.0, high: float = 1.0, told: bool = False, most: float = 1.1) -> None:
        super().__init__(low, high, told)
        self.most = most

    def teacher(self, teacher: Generator, cond: Cond, y: Tensor | None, w: Tensor) -> Denoise:
        """The guided teacher, its x0 clamped; eps stays."""
        guided = super().teacher(teacher, cond, y, w)

        def clamped(x: Tensor, t: float | Tensor) -> Estimate:
            out = guided(x, t)
            return Estimate(lambda: out.x0.clamp(-self.most, self.most), lambda: out.eps)

        return clamped


def sds_loss(x0: Tensor, x_t: Tensor, t: Tensor, teacher: Denoise, path: Path, weight: ScoreWeight) -> Tensor:
    """(B,) whose gradient with respect to x0: (B, ...) is weight (x0 - D) / D. x_t: (B, ...), t: (B,)."""
    with torch.no_grad():
        wanted = teacher(x_t, t).x0
    return projected(x0, score_gradient(x0, x0.detach(), wanted, weight(x0, wanted, t, path)))


class SDS(AlternatingDistiller):
    """SDS without critics.

    Args:
        guidance: of the teacher; times: t; weight: of the difference.
    Raises:
        ValueError: ratio other than 1.
    """

    sampler = GammaSampling(1.0)

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        guidance: TeacherGuidance = TeacherGuidance(),
        times: TimeSampler = UniformTimes(0.02),
        weight: ScoreWeight = BySoftError(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        if self.ratio != 1:
            raise ValueError(f"SDS has no critics: its student is updated in every iteration, not every {self.ratio}")
        self.times, self.weight = times, weight
        self.guide(guidance)

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """sds_loss at one time of every sample."""
        x0, path = reached.estimate.x0, self.teacher.denoiser.path
        t = self.times(len(x0), path).to(x0.device)
        x_t = path.sample(x0, torch.randn_like(x0), t, drawn.y)
        guided = self.guidance.teacher(self.teacher, drawn.cond, drawn.y, drawn.w)
        return {"score": sds_loss(x0, x_t.detach(), t, guided, path, self.weight).mean()}

    def critic_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """There are none."""
        return {}
