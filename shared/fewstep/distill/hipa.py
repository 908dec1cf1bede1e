"""HiPA: one-step low-rank adapters that learn the fine structure of multi-step samples (arXiv:2311.18158).

    x~ = the teacher's samples from eps (base weights, many steps),    x^ = one step from eps with adapters on
    L  = d_spatial(x^, x~) + sum_k w_k d_k(high_k(x^), high_k(x~))     high_k: high frequencies, edges

Trajectory regression whose student is adapters and whose distances see the frequencies that one step lacks. The paper
has perceptual distances (of decoded pictures) throughout; weights and masks are not published.
"""

from typing import Any

from fewstep.distances import Distance
from fewstep.distill.trajectory import TrajectoryRegression
from fewstep.generator import Generator
from fewstep.high_frequency import Edges, HighPass
from fewstep.lora import LowRank
from fewstep.nets.adapter import trainable
from fewstep.train.shell import Batch, Terms


class HiPA(TrajectoryRegression):
    """Adapters on a frozen base, which without them is the teacher. `distance` is the spatial one.

    Args:
        adapters: rank, targets and scale of the adapters.
        details: the high-frequency distances, each with its weight; none for data without frequencies.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        adapters: LowRank = LowRank(),
        details: tuple[Distance, ...] = (HighPass(), Edges()),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.adapters, self.details = adapters, tuple(details)
        self._teacher = [adapters.adapt(self.student, self.teacher)]
        trainable(self.student)

    def loss(self, batch: Batch) -> Terms:
        """Distances of the student's own sample to the teacher's from the same noise."""
        noise, target, _, cond, y = self.pairs(batch)
        own = self.student.generate(noise, cond, y)
        details = {f"{type(d).__name__.lower()}_{k}": d(own, target).mean() for k, d in enumerate(self.details)}
        return {"spatial": self.distance(own, target).mean()} | details
