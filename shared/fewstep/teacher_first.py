"""The teacher begins, the student goes on: few-step students settle a sample in their first step, and vary less.

    TeacherFirst   diversity distillation (arXiv:2503.10637): the guided teacher takes k of the student's steps
    TeacherSketch  DMOSpeech 2 (arXiv:2507.14988): the teacher takes its own steps to just below a time t*; with its x0
                   there the student goes on at its k-th time,   x_k = a_k x0 + b_k y + s_k eps,   eps fresh

k = 0 is the student, k = all of its steps the teacher. Nothing is trained.

DMOSpeech 2's own numbers (its time is 1 - t): 16 teacher steps, t* = 0.93, k = 1 of 4, student times
cos(pi/2 (0, 1/4, 1/2, 3/4)), and new noise before every student step, which is GammaSampling(1). Its code by default
adds noise to the teacher's velocity; that is left out.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoiser
from fewstep.generator import Generator, Prepared
from fewstep.grids import Grid
from fewstep.sampling import Callback, draw, sample
from fewstep.solvers.base import Row, Solver


class TeacherFirst(Generator):
    """A student whose first steps are the teacher's. Both take the same conditions.

    Args:
        student: its solver, grid and steps are those of all steps, its front end that of the whole.
        teacher: on the same path; needs an unconditional branch where cfg is not 1.
        first: k; at least the student's steps: the teacher alone.
        cfg: guidance of the teacher's steps; 1 is none.
    Raises:
        ValueError: k < 0; students that sample in a way of their own (jumps), which has no start in the middle.
    """

    def __init__(self, student: Generator, teacher: Generator, first: int = 1, cfg: float = 1.0) -> None:
        if first < 0:
            raise ValueError(f"the teacher takes 0 or more first steps, not {first}")
        if type(student).generate is not Generator.generate:
            raise ValueError(f"{type(student).__name__} samples in its own way, which cannot start in the middle")
        super(Generator, self).__init__()  # its parts are the student's
        self.student, self.teacher, self.first, self.cfg = student, teacher, first, cfg

    @property
    def denoiser(self) -> Denoiser:
        """The student's."""
        return self.student.denoiser

    @property
    def solver(self) -> Solver:
        """The student's."""
        return self.student.solver

    @property
    def grid(self) -> Grid:
        """The student's."""
        return self.student.grid

    @property
    def steps(self) -> int:
        """The student's, of which the teacher takes the first."""
        return self.student.steps

    def prepare(self, batch: Mapping[str, Tensor]) -> Prepared:
        """The student's."""
        return self.student.prepare(batch)

    def unconditional(self, cond: Cond) -> Cond:
        """The student's."""
        return self.student.unconditional(cond)

    def generate(
        self,
        noise: Tensor,
        cond: Cond | None = None,
        y: Tensor | None = None,
        steps: int | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> Tensor:
        """As `Generator.generate`; multistep solvers begin anew with the student."""
        path, n, cond = self.denoiser.path, self.steps if steps is None else steps, cond or {}
        grid, solver, callbacks = self.grid(path, n), solver or self.solver, tuple(callbacks)
        x, k = self.begin(noise, y, float(grid[0])), min(self.first, n)
        if k > 0:
            x = sample(self.teacher.bind(cond, y, self.cfg), x, path, solver, grid[: k + 1], y, generator, callbacks)
        if k < n:
            x = sample(self.denoiser.bind(cond, y), x, path, solver, grid[k:], y, generator, callbacks)
        return x


class TeacherSketch(TeacherFirst):
    """A student that goes on from the teacher's guess of the end, made early on a trajectory of its own.

    Args:
        stop: t*; the teacher's solver runs on its own grid to the first time below t*, to the end where there is none.
    """

    def __init__(
        self, student: Generator, teacher: Generator, first: int = 1, cfg: float = 1.0, stop: float = 0.93
    ) -> None:
        super().__init__(student, teacher, first, cfg)
        self.stop = stop

    def sketch(
        self, noise: Tensor, cond: Cond, y: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The teacher's x0 at the first time below t*, (B, ...)."""
        path, teacher, guided = self.denoiser.path, self.teacher, self.teacher.bind(cond, y, self.cfg)
        grid = teacher.grid(path, teacher.steps)
        x = teacher.begin(noise, y, float(grid[0]))
        m = int((grid >= self.stop).sum())
        if m > 0:
            x = sample(guided, x, path, teacher.solver, grid[: m + 1], y, generator)
        return x if m >= teacher.steps else guided(x, grid[m].item()).x0

    def generate(
        self,
        noise: Tensor,
        cond: Cond | None = None,
        y: Tensor | None = None,
        steps: int | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> Tensor:
        """As `Generator.generate`; steps, solver and callbacks are the student's."""
        path, n = self.denoiser.path, self.steps if steps is None else steps
        k = min(self.first, n)
        if k == 0:
            return self.student.generate(noise, cond, y, steps, solver, generator, callbacks)
        x0 = self.sketch(noise, cond or {}, y, generator)
        if k == n:
            return x0
        grid = self.grid(path, n)
        a, b, s = (v.item() for v in path.schedule(grid[k]))
        fresh = draw(x0, Row(self.stop, grid[k].item(), (a,), (), s), generator)
        x = a * x0 if fresh is None else a * x0 + s * fresh
        x = x if y is None else x + b * y
        return sample(self.denoiser.bind(cond, y), x, path, solver or self.solver, grid[k:], y, generator, callbacks)
