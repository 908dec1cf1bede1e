"""Consistency training: the same as distillation with the data in place of the teacher's step (arXiv:2303.01469, eq. 10).

    x_t = path.sample(x0, eps, t),   x_s = path.sample(x0, eps, s)       the same x0 and eps: DDIM's step with the true x0
    L = w(t, s) d( f(x_t, t), sg f^-(x_s, s) )

The teacher is what the student begins as (a fresh `student` trains from scratch) and what `agreement` is measured against. Configurations:

    CT  (arXiv:2303.01469)   `Adjacent(SquareRoot(2, 150), Karras(clean=False))`, mu = 0.9, `Even`
    iCT (arXiv:2310.14189)   the defaults here: `LogNormalBins(Doubling(10, 1280))`, mu = 0, `InverseInterval`, `PseudoHuber`; dropout in the
                             network (its masks are shared). Its steps double with progress, not at given iterations.
    ECT (arXiv:2406.14548)   `ContinuousIntervals()`, mu = 0, `InverseInterval`

The noise levels of intervals and of the weight's 1/(rho_t - rho_s) are rho = s/a on every path.
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.distill.consistency import Consistency
from fewstep.distill.intervals import Intervals, LogNormalBins
from fewstep.distill.weighting import InverseInterval, Weighting
from fewstep.generator import Generator
from fewstep.train.shell import Batch, Terms


class ConsistencyTraining(Consistency):
    """CT, iCT and ECT; the remaining arguments are those of `Consistency`."""

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        intervals: Intervals = LogNormalBins(),
        weighting: Weighting = InverseInterval(),
        mu: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, intervals=intervals, weighting=weighting, mu=mu, **kwargs)

    def loss(self, batch: Batch) -> Terms:
        """Consistency between two levels of the same noise."""
        return {"consistency": self.each(batch).mean()}

    def each(self, batch: Batch) -> Tensor:
        """The weighted loss of every sample, (B,)."""
        x0, cond, y = self.student.prepare(batch)
        (t, s), eps, path = self.times(x0), torch.randn_like(x0), self.student.denoiser.path
        x_t, x_s = (path.sample(x0, eps, v, y) for v in (t, s))
        return self.compare(x_t, t, x_s, s, cond, y)
