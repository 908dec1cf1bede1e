"""Multi-student distillation: one student for each group of conditions, all in one artifact (MSD, arXiv:2410.23274).

A student of its own has a part of the conditions to learn, so that students of the teacher's size become better and smaller ones as good. The
groups are trained together here, each on its own conditions: a batch is split among them. One group is the method itself.
"""

from collections.abc import Sequence
from typing import Any

from fewstep.distill.dmd import DMD
from fewstep.generator import Generator
from fewstep.nets.adapter import trainable
from fewstep.nets.routed import Routed


class MSD(DMD):
    """DMD of several students; the remaining arguments are those of `DMD`. Their second stage in the paper is an `adversary`.

    Args:
        groups: the labels of each student.
    """

    def __init__(self, teacher: Generator, iterations: int, groups: Sequence[Sequence[int]], **kwargs: Any) -> None:
        super().__init__(teacher, iterations, **kwargs)
        denoiser = self.student.denoiser
        denoiser.net = Routed.copies(denoiser.net, groups)
        trainable(self.student)
