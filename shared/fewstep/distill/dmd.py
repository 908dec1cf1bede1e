"""Distribution matching distillation: move samples along the difference of two scores (arXiv:2311.18828).

    g = weight (D_psi(x_t) - D^w_phi(x_t)),   weight = 1 / mean|x0 - D^w_phi(x_t)|        dL/dx0 = g  (+ lambda d(f(z), x) on pairs)

the gradient of the reverse Kullback-Leibler divergence of the noised laws, reweighted; neither score passes a gradient on. With a rollout of
several steps and ratio 5 to 10 this is the score half of DMD2 (arXiv:2405.14867). Other papers are configurations:

    Diff-Instruct (arXiv:2305.18455), VSD    weight `ByTime()`, or another function of t; ratio 1
    SwiftBrush (arXiv:2312.05239)            weight `NoiseDifference()`, fake_weighting `SignalSNR()`, ratio 1, adapters, guided_fake, guidance 4.5, drop .1
    SNOOPI's PG-SB (arXiv:2412.02687)        the same with guidance drawn from [low, high]; its range is not published
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.distances import Distance, SquaredL2
from fewstep.distill.alternating import Drawn
from fewstep.distill.pool import PairPool, pairs_of
from fewstep.distill.rollout import Reached
from fewstep.distill.score_distillation import ScoreDistillation
from fewstep.distill.score_gradient import ByTeacherError, ScoreWeight, projected, score_gradient
from fewstep.distill.trajectory import regression_loss
from fewstep.generator import Generator
from fewstep.paths import Path
from fewstep.train.shell import Batch, Terms


def dmd_loss(
    x0: Tensor, x_t: Tensor, t: Tensor, teacher: Denoise, fake: Denoise, path: Path, weight: ScoreWeight
) -> tuple[Tensor, Tensor, Tensor]:
    """(the loss (B,) whose gradient with respect to x0 is g / D, D_psi, D_phi). x0, x_t: (B, ...); t: (B,)."""
    with torch.no_grad():
        wanted, own = teacher(x_t, t).x0, fake(x_t, t).x0
    return projected(x0, score_gradient(x0, own, wanted, weight(x0, wanted, t, path))), own, wanted


class DMD(ScoreDistillation):
    """DMD, Diff-Instruct, SwiftBrush; the remaining arguments are those of `ScoreDistillation`.

    Args:
        weight: of the difference of the scores.
        pool: teacher pairs for the regression, which needs one-step students; without one there is no such term, unless batches hold pairs.
        regression: its factor, .25 in the paper with LPIPS; distance: of the pairs.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        weight: ScoreWeight = ByTeacherError(),
        pool: PairPool | None = None,
        regression: float = 0.25,
        distance: Distance = SquaredL2(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.weight, self.pool, self.regression, self.distance = weight, pool, regression, distance

    def match(self, x0: Tensor, x_t: Tensor, t: Tensor, teacher: Denoise, fake: Denoise, drawn: Drawn) -> Tensor:
        """1/2 |x0 - sg(x0 - g)|^2 / D."""
        loss, own, wanted = dmd_loss(x0, x_t, t, teacher, fake, self.teacher.denoiser.path, self.weight)
        self.see(own, wanted)
        return loss

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The score's term, and the regression of pairs."""
        return super().student_terms(reached, drawn, batch) | self.regress(drawn, batch)

    def regress(self, drawn: Drawn, batch: Batch) -> Terms:
        """lambda d(the student's sample, the teacher's) from the same noise."""
        pairs = pairs_of(batch, self.pool, self.teacher, self.student)
        if pairs is None:
            return {}
        noise, target, _, cond, y = pairs
        loss = regression_loss(lambda n: self.student.generate(n, cond, y), noise, target, self.distance)
        return {"regression": self.regression * loss.mean()}
