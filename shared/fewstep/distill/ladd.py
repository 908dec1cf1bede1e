"""Adversarial diffusion distillation: the teacher's layers tell samples from data (ADD, arXiv:2311.17042; LADD, arXiv:2403.12015).

    x0 = the student's rollout,   x_t' = path.sample(x0, eps, t'),   logits C(x_t') by heads on layers of the frozen teacher
    critic    loss.critic(C(real), C(fake)) + penalty
    student   loss.student(C(fake)) + lambda c(t) |x0 - sg D^w_phi(x_t)|^2

LADD has no second term and a few fixed times; ADD has lambda = 2.5 and judges the clean sample by another network (`network`). Real samples are data, or
the teacher's own (`pool`), as in LADD.
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.discriminators import Adversary
from fewstep.distill.alternating import Drawn
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.judged import Judged
from fewstep.distill.pool import PairPool
from fewstep.distill.rollout import Reached
from fewstep.distill.weighting import Even, Weighting
from fewstep.generator import Generator
from fewstep.solvers import GammaSampling
from fewstep.times import TimeSampler, UniformTimes
from fewstep.train.shell import Batch, Terms


class LADD(Judged):
    """ADD and LADD; the remaining arguments are those of `Judged`.

    Args:
        pool: real samples are the teacher's, from it; the data unless given.
        distillation: lambda; times, weighting, guidance: t, c and the teacher of that term.
    """

    sampler = GammaSampling(1.0)

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        adversary: Adversary,
        pool: PairPool | None = None,
        distillation: float = 0.0,
        times: TimeSampler = UniformTimes(0.02),
        weighting: Weighting = Even(),
        guidance: TeacherGuidance = TeacherGuidance(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, adversary, **kwargs)
        self.pool = pool
        self.distillation, self.times, self.weighting = distillation, times, weighting
        self.guide(guidance)

    def drawn(self, batch: Batch) -> Drawn:
        """As ever; with a pool the teacher's samples in place of data, and the noise that they come from."""
        drawn = super().drawn(batch)
        if self.pool is None:
            return drawn
        noise, target, _, cond, y = self.pool.draw(self.teacher, self.student.prepare(batch))
        return Drawn(target, cond, y, drawn.w, noise)

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The adversary's term, and the distillation."""
        x0, (real, cond, y, _, _) = reached.estimate.x0, drawn
        terms = {"adversarial": self.adversarial(x0, real, cond, y)}
        if self.distillation:
            t = self.times(len(x0), self.teacher.denoiser.path).to(x0.device)
            guided = self.guidance.teacher(self.teacher, cond, y, drawn.w)
            terms["distill"] = self.distillation * self.distill(x0, torch.randn_like(x0), t, guided, drawn).mean()
        return terms

    def distill(self, x0: Tensor, eps: Tensor, t: Tensor, teacher: Denoise, drawn: Drawn) -> Tensor:
        """c(t) |x0 - sg D^w_phi(x_t)|^2, (B,)."""
        path = self.teacher.denoiser.path
        with torch.no_grad():
            wanted = teacher(path.sample(x0, eps, t, drawn.y), t).x0
        square = (x0 - wanted).square().flatten(1).mean(1)
        return self.weighting(t, torch.full_like(t, path.t_min), path).to(square) * square
