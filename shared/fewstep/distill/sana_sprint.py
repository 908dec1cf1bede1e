"""SANA-Sprint: sCM and an adversary on the teacher's layers, for one student (arXiv:2503.09641).

    L = scm L_sCM + L_adv,    x0' = f(x_t, t) for the adversary,   t as for sCM but t_max with probability `largest`

sCM (scm.py) keeps the teacher's trajectories and with them all modes, the adversary (discriminators/adversary.py, as in LADD) adds what a mean over
targets blurs; pure noise, where one step begins, is rare among sCM's times. Both are taken from where they are: this file only adds them up.

The teacher is on `Trig(sd)`, taken there from a flow by `converted.on_path`. The official code has hinge or logistic losses, steps of student and
critic in turn (here both in one iteration), and may show the critic samples with other prompts, left out here. Its factor of L_adv is the
adversary's `weight`; .5, as in the recipes, was not checked against the paper.
"""

from typing import Any

import torch

from fewstep.denoiser import Cond
from fewstep.discriminators import Adversary
from fewstep.distill.alternating import Drawn
from fewstep.distill.judged import Judged
from fewstep.distill.rollout import Reached
from fewstep.distill.scm import SCM
from fewstep.generator import Generator
from fewstep.train.shell import Batch, Terms


class SanaSprint(Judged, SCM):
    """sCM with an adversary; the remaining arguments are those of `SCM` and of `Judged`, whose rollout is not used.

    Args:
        adversary: its weight is of L_adv.
        scm: factor of L_sCM.
        largest: share of the adversary's samples that begin at pure noise.
    Raises:
        ValueError: `largest` outside of [0, 1].
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        adversary: Adversary,
        scm: float = 1.0,
        largest: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if not 0 <= largest <= 1:
            raise ValueError(f"largest is a share in [0, 1], not {largest}")
        super().__init__(teacher, iterations, adversary, **kwargs)
        self.scm, self.largest = scm, largest

    def reach(self, drawn: Drawn, cond: Cond) -> Reached:
        """f at noised data, for some at pure noise."""
        x0 = drawn.x0
        t = self.times(len(x0), self.path).to(x0.device)
        t = torch.where(torch.rand(len(x0), device=x0.device) < self.largest, self.path.t_max, t)
        x_t = self.path.sample(x0, drawn.noise, t)
        return Reached(x_t, t, self.student.denoiser(x_t, t, cond), torch.full_like(t, self.path.t_min))

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """Both losses, at times of their own."""
        terms = {name: self.scm * v for name, v in SCM.loss(self, batch).items()}
        real, cond, y, _, _ = drawn
        return terms | {"adversarial": self.adversarial(reached.estimate.x0, real, cond, y)}
