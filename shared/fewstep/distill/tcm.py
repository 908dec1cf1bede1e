"""Truncated consistency models (arXiv:2410.14895): a second stage of consistency training that learns noisy times alone.

    f(x, t) = the student where t >= t', the frozen model of the first stage below it
    L = mean over t > t' of  w d( f(x_t, t), sg f(x_s, s) )  +  0.1 mean at t = t' of the same

At t' the target is the first stage's, as s < t': this boundary term keeps the student from collapsing to a constant. The share of the batch
at t' is 1/4. The times above are heavy-tailed (`LogStudentTimes`), and intervals as short as the first stage's last ones.

The teacher is the model of the first stage. The student is meant for t >= t': one step, or several with levels above it.
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.distill.consistency import EndPoint
from fewstep.distill.consistency_training import ConsistencyTraining
from fewstep.distill.intervals import ContinuousIntervals
from fewstep.generator import Generator
from fewstep.paths import expand
from fewstep.paths.base import nearest_time
from fewstep.times import LogStudentTimes
from fewstep.train.shell import Batch, Terms


class TCM(ConsistencyTraining):
    """The remaining arguments are those of `ConsistencyTraining`.

    Args:
        intervals: times below the boundary are moved to it.
        boundary: the level rho = s/a at t' (1 in the paper).
        share: of the batch at the boundary, at least one sample.
        weight: of the boundary term.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        intervals: ContinuousIntervals = ContinuousIntervals(LogStudentTimes(), q=1000.0, stages=1),
        boundary: float = 1.0,
        share: float = 0.25,
        weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if not (boundary > 0 and 0 < share < 1):
            raise ValueError(f"needs a level boundary > 0 and a share in (0, 1), got {boundary} and {share}")
        super().__init__(teacher, iterations, intervals=intervals, **kwargs)
        self.boundary, self.share, self.weight = boundary, share, weight
        self._mapping = intervals
        level = torch.tensor(boundary, dtype=torch.float64)
        self.t_boundary = nearest_time(self.student.denoiser.path, -level.log()).item()  # t'

    def loss(self, batch: Batch) -> Terms:
        """Consistency above the boundary, and at it.

        Raises:
            ValueError: a batch of one sample, which cannot be at both.
        """
        each = self.each(batch)
        n = self.at_boundary(len(each))
        if n == len(each):
            raise ValueError(f"a batch of {n} has no sample left above the boundary")
        return {"consistency": each[n:].mean(), "boundary": self.weight * each[:n].mean()}

    def times(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """(t, s), the first `at_boundary` of them at t'."""
        path = self.student.denoiser.path
        t = self._mapping.times(len(x0), path).clamp(min=self.t_boundary)
        t[: self.at_boundary(len(x0))] = self.t_boundary
        return t.to(x0.device), self._mapping.end(t, path, self.progress).to(x0.device)

    def at_boundary(self, n: int) -> int:
        """How many of a batch of n sit at the boundary."""
        return max(1, round(self.share * n))

    def target_point(self, cond: Cond, y: Tensor | None) -> EndPoint:
        """The student's target from t' on, the first stage below."""
        own, first = super().target_point(cond, y), self.end_point(self.teacher.denoiser, cond, y)

        def target(x: Tensor, t: Tensor) -> Tensor:
            return torch.where(expand(t >= self.t_boundary, x).bool(), own(x, t), first(x, t))

        return target
