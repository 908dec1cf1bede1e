"""Progressive distillation: a student whose one step is two of its teacher's, again and again (arXiv:2202.00512).

    t > t' > t''  neighbours on the teacher's grid of 2N steps, t and t'' on the student's grid of N
    x_t = path.sample(x0, eps, t),    x'' = two DDIM steps of the teacher t -> t' -> t''
    x~  = (x'' - (s''/s_t) x_t) / (a'' - (s''/s_t) a_t)        L = weight(t) d( f(x_t, t), sg x~ )

x~ is the x0 with which one DDIM step t -> t'' ends in x''. On a rectified flow the target velocity is the chord
(x'' - x_t)/(t'' - t); on EDM's path x~ = x_t - t (x'' - x_t)/(t'' - t) (openai/consistency_models). Then teacher is
student, N is N/2, in one run. The learning rate starts anew in each stage, as the paper's; the optimiser's moments go
on. At the noisy end x0 cannot be had from a predicted eps: the paper changes to x0 or v.

With a `ToldTeacher` (guided.py) this is the second stage of guided distillation.
"""

import copy
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise
from fewstep.distances import Distance, SquaredL2
from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.line import secant
from fewstep.distill.weighting import MaxSNR, Weighting
from fewstep.generator import Generator
from fewstep.grids.explicit import Explicit
from fewstep.paths import Path
from fewstep.per_sample import sample_each
from fewstep.solvers import DDIM
from fewstep.train.schedules import Schedule
from fewstep.train.shell import Batch, Terms


@torch.no_grad()
def chord_target(teacher: Denoise, path: Path, x_t: Tensor, times: Tensor, y: Tensor | None = None) -> Tensor:
    """x~ of the teacher's DDIM steps along times: (B, n + 1) from x_t: (B, ...) at times[:, 0]."""
    x_s = sample_each(teacher, x_t, path, DDIM(), times, y)
    return secant(path, x_t, times[:, 0], x_s, times[:, -1], y).x0


class Stage(NamedTuple):
    """A student of `steps` steps, trained from the iteration `begin` on."""

    steps: int
    begin: int


@dataclass(frozen=True)
class Halving:
    """A teacher of `start` steps, students of start/2, start/4, ...; those of `slow` or fewer train twice as long."""

    start: int = 32
    slow: int = 2

    def stages(self, steps: int, iterations: int) -> tuple[Stage, ...]:
        """The stages whose last student has `steps` steps.

        Raises:
            ValueError: start is not steps times a power of two.
        """
        halvings = (self.start // steps).bit_length() - 1
        if halvings < 1 or steps << halvings != self.start:
            raise ValueError(f"{self.start} steps cannot be halved to {steps}: allowed are {steps} times 2, 4, 8, ...")
        sizes = [self.start >> k for k in range(1, halvings + 1)]
        ends = list(accumulate(2 if n <= self.slow else 1 for n in sizes))
        return tuple(Stage(n, iterations * e // ends[-1]) for n, e in zip(sizes, [0, *ends], strict=False))


@dataclass(frozen=True)
class EachStage(Schedule):
    """A schedule that starts anew at every stage, as the paper's learning rate does."""

    schedule: Schedule
    stages: Sequence[Stage]

    def __call__(self, iteration: int, iterations: int) -> float:
        ends = [*(s.begin for s in self.stages), max(iterations, iteration + 1)]
        k = bisect_right(ends, iteration)
        return self.schedule(iteration - ends[k - 1], ends[k] - ends[k - 1])


class ProgressiveDistillation(Distiller):
    """Halve the steps of the teacher, again and again, to the `steps` of the student.

    The student's sampling is that of its last stage from the beginning, so its agreement is low until then.

    Args:
        halving: the stages.
        guidance: of the first teacher; later ones are students, and need none.
        weighting: the paper's max(SNR, 1) or SNR + 1.
    """

    sampler = DDIM()

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        halving: Halving = Halving(),
        guidance: TeacherGuidance = TeacherGuidance(),
        weighting: Weighting = MaxSNR(),
        distance: Distance = SquaredL2(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.halving, self.weighting, self.distance = halving, weighting, distance
        self.guide(guidance)
        self.stages = halving.stages(self.student.steps, iterations)
        self.schedule = EachStage(self.schedule, self.stages)
        path, n = self.student.denoiser.path, self.student.steps
        self.times = self.student.grid(path, halving.start)
        own = self.times[:: halving.start // n]
        # A grid of n steps need not be every other time of the one of 2n: the student is sampled where it was trained.
        if (own - self.student.grid(path, n)).abs().max() > 1e-9 * (path.t_max - path.t_min):
            self.student.grid = Explicit(tuple(own.tolist()))
        self.previous = copy.deepcopy(self.student.denoiser).eval().requires_grad_(False)

    def stage(self, done: int) -> int:
        """The number of the stage after so many iterations."""
        return bisect_right([s.begin for s in self.stages], done) - 1

    def stage_teacher(self, cond: Cond, y: Tensor | None, w: Tensor) -> Denoise:
        """The teacher of the present stage: the student of the one before."""
        if self.stage(self.done) == self.stage(0):
            return self.guidance.teacher(self.teacher, cond, y, w)
        return self.previous.bind(self.guidance.student_cond(cond, w), y)

    def draw(self, n: int) -> Tensor:
        """(n, 3) times t, t', t'' of the present stage, each step of the student as likely."""
        steps = self.stages[self.stage(self.done)].steps
        fine = self.times[:: self.halving.start // (2 * steps)]
        first = 2 * torch.randint(steps, (n,))
        return torch.stack([fine[first + k] for k in range(3)], 1)

    def loss(self, batch: Batch) -> Terms:
        """Distance of the student's x0 to the one that makes two steps one."""
        x0, cond, y = self.student.prepare(batch)
        path, w, times = self.teacher.denoiser.path, self.guidance.draw(x0), self.draw(len(x0)).to(x0.device)
        t, s = times[:, 0], times[:, -1]
        x_t = path.sample(x0, torch.randn_like(x0), t, y)
        target = chord_target(self.stage_teacher(cond, y, w), path, x_t, times, y)
        f = self.student.denoiser.bind(self.guidance.student_cond(cond, w), y)
        loss = self.distance(f(x_t, t).x0, target)
        return {"progressive": (self.weighting(t, s, path).to(loss) * loss).mean()}

    def after_step(self) -> None:
        if self.stage(self.done + 1) > self.stage(self.done):
            self.previous.load_state_dict(self.student.denoiser.state_dict())

    def figures(self) -> dict[str, float]:
        return {"train/steps": float(self.stages[self.stage(self.done)].steps)}
