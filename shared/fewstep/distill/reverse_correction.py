"""Correcting the reverse process: the teacher, tuned so that its own few steps end at the data (CRP, arXiv:2309.09677).

    x_{t_0} = start(eps, y),   x_{t_{k+1}} = the student's step from x_{t_k}   (no gradient),   L = d( f(x_{t_K}, t_K), x0 )

The second stage of that paper, after denoising on noised data: the states are those that few steps really reach, so the loss sees their
discretisation and the start's mismatch. It is for conditions or anchors that all but say what the sample must be (enhancement, restoration):
the optimum is the mean of x0 given the state, so where much is left open samples lose their variety.

The paper's steps are Euler-Maruyama's, whose last mean is its estimate of x0; here they are the student's own solver's.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.distances import Distance, SquaredL2, within
from fewstep.distill.base import Distiller
from fewstep.distill.rollout import LastStep, Rollout
from fewstep.generator import Generator
from fewstep.solvers import GammaSampling
from fewstep.train.shell import Batch, Terms


class ReverseCorrection(Distiller):
    """Tune the teacher's few steps against data. It is sampled with fresh noise between its steps unless `solver` is given.

    Args:
        rollout: the steps before the estimate that is compared. `LastStep()` is the paper's; `RandomStep()` makes one student for any
            number of steps up to `steps`.
        distance: d.
    """

    sampler = GammaSampling(1.0)

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        rollout: Rollout = Rollout(LastStep()),
        distance: Distance = SquaredL2(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.rollout, self.distance = rollout, distance

    def loss(self, batch: Batch) -> Terms:
        """Distance of the student's estimate, where its rollout ends, to the data."""
        x0, cond, y = self.student.prepare(batch)
        own = self.rollout(self.student, torch.randn_like(x0), cond, y).estimate.x0
        return {"correction": within(self.distance, self.student.mask(cond))(own, x0).mean()}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """d(sample, data) on held-out data, and the domain's figures; the teacher, who is not imitated, is not sampled beside."""
        model = cast(Generator, model)
        x0, cond, y = model.prepare(batch)
        own = model.generate(torch.randn_like(x0), cond, y)
        return {"correction": within(self.distance, model.mask(cond))(own, x0)} | model.scores(batch)
