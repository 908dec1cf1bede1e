"""Trajectory regression: the student's one evaluation learns where the teacher's deterministic trajectory ends.

    x_T = start(eps, y)      F(x_T) = teacher's ODE solution at the clean end      L = | f(x_T, T) - F(x_T) |^2

The distillation term of SinSR (arXiv:2311.14760, eq. 9) and, with stored pairs, knowledge distillation (arXiv:2101.02388).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fewstep.distill.base import Distiller
from fewstep.distill.pool import PairPool, Pairs
from fewstep.generator import Generator
from fewstep.train.shell import Batch, Terms


def regression_loss(student: Callable[[Tensor], Tensor], noise: Tensor, target: Tensor) -> Tensor:
    """Mean square of student(noise) - target per sample, (B,)."""
    return (student(noise) - target).square().flatten(1).mean(1)


class TrajectoryRegression(Distiller):
    """Regress the teacher's end points from the same noise.

    Args:
        pool: how teacher pairs are made and reused; without one each batch gets fresh pairs.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        pool: PairPool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.pool = pool or PairPool()

    def pairs(self, batch: Batch) -> Pairs:
        """Noise, teacher end point and conditions for one iteration."""
        return self.pool.draw(self.teacher, self.student.prepare(batch), self.done)

    def loss(self, batch: Batch) -> Terms:
        """Distance of the student's own sample to the teacher's from the same noise."""
        noise, target, _, cond, y = self.pairs(batch)
        return {"distill": regression_loss(lambda n: self.student.generate(n, cond, y), noise, target).mean()}
