"""Adversarial compression: a pruned student does in one step what its teacher, itself of few steps, does (AdcSR, arXiv:2411.13383).

    x = the student's sample from z,   x^ = the teacher's from the same z
    L = d(x, x^) + the adversary's term,    critic: real samples are data

The teacher is a distilled generator, so that its samples are targets for a map, not only for a law; the student is given, such as
`fewstep.prune.pruned`. AdcSR itself compares and judges features of its frozen image decoder (L1, and an adapted U-Net as critic): where
generator and data are such features this is its loss, elsewhere it is the same on samples.
"""

from typing import Any

import torch

from fewstep.discriminators import Adversary
from fewstep.distances import L1, Distance
from fewstep.distill.alternating import Drawn
from fewstep.distill.judged import Judged
from fewstep.distill.rollout import Reached
from fewstep.generator import Generator
from fewstep.train.shell import Batch, Terms


class Compression(Judged):
    """The remaining arguments are those of `Judged`.

    Args:
        student: smaller than the teacher.
        distance: of both samples.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        adversary: Adversary,
        student: Generator,
        distance: Distance = L1(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, adversary, student=student, **kwargs)
        self.distance = distance

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The distance to the teacher's sample, and the adversary's term."""
        own, (real, cond, y, _, noise) = reached.estimate.x0, drawn
        with torch.no_grad():
            wanted = self.teacher.generate(noise, cond, y)
        return {"distance": self.distance(own, wanted).mean(), "adversarial": self.adversarial(own, real, cond, y)}
