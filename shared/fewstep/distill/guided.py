"""Guided distillation (arXiv:2210.03142): one evaluation of the student is the guided teacher, which costs two.

    stage 1    x_t = path.sample(x0, eps, t),   w ~ U[low, high],   L = weight(t) d( f(x_t, t, w), sg D^w(x_t, t) )
    stage 2    fewer steps: progressive distillation of that student (progressive.py); `ToldTeacher` draws the w of both
    sampling   DDIM, or the paper's stochastic steps of double length (solvers/double_step.py)

D^w = D_u + w (D_c - D_u); the paper writes w + 1 for this w, so its [0, 4] is [1, 5] here, its [2, 14] for latents
[3, 15].

With adapters (LoRA-enhanced distillation, arXiv:2312.06899) the base stays frozen and is the teacher wherever the
adapters are off: one set of weights in memory. No code of that paper is public.
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise
from fewstep.distances import Distance, SquaredL2
from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.weighting import MaxSNR, Weighting
from fewstep.generator import Generator
from fewstep.lora import LowRank
from fewstep.nets.adapter import trainable
from fewstep.times import TimeSampler, UniformTimes
from fewstep.train.shell import Batch, Terms


def matching_loss(f: Denoise, teacher: Denoise, x_t: Tensor, t: Tensor, distance: Distance = SquaredL2()) -> Tensor:
    """d(f(x_t, t), sg teacher(x_t, t)) of the two x0, (B,); x_t: (B, ...), t: (B,)."""
    with torch.no_grad():
        wanted = teacher(x_t, t).x0
    return distance(f(x_t, t).x0, wanted)


class ToldTeacher(TeacherGuidance):
    """Guidance of a teacher that is told w, as stage 1 leaves it: one evaluation per call; the student is told too."""

    def __init__(self, low: float = 1.0, high: float = 1.0) -> None:
        super().__init__(low, high, told=True)

    def teacher(self, teacher: Generator, cond: Cond, y: Tensor | None, w: Tensor) -> Denoise:
        """The teacher at these w."""
        return teacher.denoiser.bind({**cond, "w": w}, y)

    def generate(self, teacher: Generator, noise: Tensor, cond: Cond, y: Tensor | None, w: Tensor) -> Tensor:
        """Its samples at these w."""
        return teacher.generate(noise, {**cond, "w": w}, y)


class GuidedDistillation(Distiller):
    """Stage 1. The student keeps the teacher's solver, and wants its steps.

    Args:
        guidance: of the teacher; where it is not told, the student learns the mean over w (one w: low = high).
        times: where the two are compared.
        adapters: train these in place of the network.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        guidance: TeacherGuidance = TeacherGuidance(1.0, 5.0, told=True),
        times: TimeSampler = UniformTimes(),
        weighting: Weighting = MaxSNR(),
        distance: Distance = SquaredL2(),
        adapters: LowRank | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.times, self.weighting, self.distance, self.adapters = times, weighting, distance, adapters
        self.guide(guidance)
        if adapters is not None:
            self._teacher = [adapters.adapt(self.student, self.teacher)]
            trainable(self.student)

    def loss(self, batch: Batch) -> Terms:
        """Distance of the student to the guided teacher at one time of every sample's path."""
        x0, cond, y = self.student.prepare(batch)
        path, w = self.teacher.denoiser.path, self.guidance.draw(x0)
        t = self.times(len(x0), path).to(x0.device)
        x_t = path.sample(x0, torch.randn_like(x0), t, y)
        f = self.student.denoiser.bind(self.guidance.student_cond(cond, w), y)
        loss = matching_loss(f, self.guidance.teacher(self.teacher, cond, y, w), x_t, t, self.distance)
        return {"guided": (self.weighting(t, torch.full_like(t, path.t_min), path).to(loss) * loss).mean()}
