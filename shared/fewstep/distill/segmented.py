"""Segmented consistency: states of one trajectory agree at the end of their segment, not at the data (arXiv:2405.18407, eq. 10).

    G(x, t -> e) = DDIM's step from t to e with the student's x0,    e = the end of the segment of t
    L = d( G(x_t, t -> e), sg G^-(x_s, s -> e) ),    x_s = the teacher's step from x_t, no further than e;  x_s itself where s = e

One segment is consistency distillation, bit for bit where the clean end has no noise; as many as the intervals' grid has steps is
regression on the teacher's steps. Sampled deterministically, one step per segment, on the segments' own grid. Configurations; the adversary
of the first two is in segmented_gan.py:

    PCM (arXiv:2405.18407)     `Segments(4)` on a grid of 48 steps (the paper's 50, cut at whole numbers of them), one DDIM step,
                               `ElementwiseHuber`, guidance in [4, 5] that is not told
    TSCD (arXiv:2404.13686)    `SegmentStages((8, 4, 2, 1))`, `SquaredL2`. The teacher is the diffusion model in every stage: Hyper-SD does
                               not say whether it is, or the student of the stage before.
    MLCM (arXiv:2406.05768)    stages too, drawn guidance that is told, and `walk`: no data, x_t is a state of the teacher's trajectory
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise, Denoiser
from fewstep.distill.consistency import ConsistencyDistillation, EndPoint
from fewstep.distill.intervals import Adjacent, Intervals, OnGrid
from fewstep.distill.line import step
from fewstep.distill.segments import Segments, SegmentStages
from fewstep.distill.teacher_step import TeacherStep
from fewstep.generator import Generator
from fewstep.grids import Grid
from fewstep.solvers import DDIM


class SegmentedConsistency(ConsistencyDistillation):
    """PCM, TSCD and MLCM; the remaining arguments are those of `ConsistencyDistillation`.

    Args:
        segments: fixed, or merging in stages.
        walk: x_t is where these steps take the guided teacher from fresh noise; without it, noised data.
        grid: the student's; that of the segments unless given.
    Raises:
        ValueError: a segment, of those of the end, or a step of the student begins between two times of the intervals' grid. The student
            jumps from there when it samples; never trained at that time, it would be halfway between two segments' functions.
    """

    sampler = DDIM()

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        segments: Segments | SegmentStages = Segments(4),
        walk: TeacherStep | None = None,
        grid: Grid | None = None,
        intervals: Intervals = Adjacent(48),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, grid=grid or segments.grid, intervals=intervals, **kwargs)
        self.segments, self.walk = segments, walk
        if isinstance(self.intervals, OnGrid):
            last, path = segments.at(1.0), teacher.denoiser.path
            own = self.student.grid(path, self.student.steps)
            starts, times = torch.cat([last.boundaries(path)[:-1], own[:-1]]), self.intervals.times(path, 1.0)
            away = (starts[:, None] - times).abs().amin(1)
            if away.max() > 1e-9 * (path.t_max - path.t_min):
                t, n = starts[away.argmax()].item(), len(times) - 1
                raise ValueError(
                    f"segments and steps of the student begin at times of the intervals' grid, and {t:g} is none of {self.intervals.grid} "
                    f"of {n} steps: that of the segments, {last.grid}, with a multiple of {last.k} steps has all of them"
                )

    def end(self, t: Tensor) -> Tensor:
        """The ends of the segments of t."""
        return self.segments.at(self.progress).end(t, self.student.denoiser.path)

    def end_point(self, denoiser: Denoiser, cond: Cond, y: Tensor | None) -> EndPoint:
        """G(., t -> end of the segment of t)."""
        bound = denoiser.bind(cond, y)
        return lambda x, t: step(denoiser.path, x, bound(x, t).x0, t, self.end(t), y)

    def state(self, teacher: Denoise, x0: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """x_t: noised data, or the teacher's own."""
        if self.walk is None:
            return super().state(teacher, x0, t, y)
        path = self.student.denoiser.path
        begin = torch.full_like(t, path.t_max)
        return self.walk(teacher, path, path.start(torch.randn_like(x0), y), begin, t, y)
