"""Consistency distillation: all states of one teacher trajectory have the same end point (arXiv:2303.01469, eq. 7).

    x_t = path.sample(x0, eps, t),    x_s = the teacher's step t -> s from x_t
    L = w(t, s) d( f(x_t, t), sg f^-(x_s, s) ),    x_s itself in place of f^- where s is the clean end

f is the x0 of the student, f^- its average or itself. At the clean end f is the identity: by the prediction where it can be (U on a
rectified flow, c_skip and c_out of `ConsistencyPrecondition` on EDM's path), and always in the targets.

Other papers are configurations:

    LCM (arXiv:2310.04378)     guidance of the teacher, drawn and told to the student; `Adjacent(50)` (or 1000 with stride 20), one DDIM step;
                               `ElementwiseHuber`. Its c_skip and c_out on integer times are 0 and 1 but at the clean end: not needed here,
                               where the clean end of an index path (t = -1) has no noise.
    SCott (arXiv:2403.01505)   an SDE step of several sub-steps (`TeacherStep(Ancestral(eta), 4)`); drawn guidance. The target is then a
                               conditional mean, so intervals should be short. With its adversary: consistency_gan.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise, Denoiser
from fewstep.distances import Distance, PseudoHuber, within
from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.intervals import Adjacent, Intervals
from fewstep.distill.target import Target
from fewstep.distill.teacher_step import TeacherStep
from fewstep.distill.weighting import Even, Weighting
from fewstep.generator import Generator
from fewstep.paths import expand
from fewstep.solvers import GammaSampling, Heun
from fewstep.train.shell import Batch, Terms

# (x, t) -> the end point of x's trajectory, both (B, ...), times (B,).
EndPoint = Callable[[Tensor, Tensor], Tensor]


def consistency_loss(
    f: EndPoint, target: EndPoint, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, end: Tensor, distance: Distance
) -> Tensor:
    """d(f(x_t, t), sg target(x_s, s)), with x_s itself as the target where s <= end, (B,)."""
    wanted = aim(target, x_s, s, end)
    return distance(f(x_t, t), wanted)


def aim(target: EndPoint, x_s: Tensor, s: Tensor, end: Tensor) -> Tensor:
    """sg target(x_s, s). Dropout will draw the same masks in the student: it begins at the random state found here."""
    with torch.no_grad(), torch.random.fork_rng(devices=[x_s.device] if x_s.is_cuda else []):
        return torch.where(expand(s <= end, x_s).bool(), x_s, target(x_s, s))


class Consistency(Distiller):
    """What distillation and training have in common; subclasses write `loss` by `compare`.

    Args:
        intervals: (t, s); mu: decay of the target's average, 0 is the student itself. With a curriculum it is mu^(N(0)/N) where the
            grid has N points (CM's exp(s_0 log(mu_0)/N)).
    """

    # Steps of a student put fresh noise between evaluations.
    sampler = GammaSampling(1.0)

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        intervals: Intervals = Adjacent(),
        distance: Distance = PseudoHuber(),
        weighting: Weighting = Even(),
        mu: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.intervals, self.distance, self.weighting, self.mu = intervals, distance, weighting, mu
        self.target = Target(self.student.denoiser, mu)

    def tell(self, name: str, scale: float, value: float) -> None:
        super().tell(name, scale, value)
        self.target = Target(self.student.denoiser, self.mu)  # the average is told too

    def times(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """(t, s) for a batch, on its device."""
        t, s = self.intervals(len(x0), self.student.denoiser.path, self.progress)
        return t.to(x0.device), s.to(x0.device)

    def end(self, t: Tensor) -> Tensor:
        """Where the trajectories that are at times t: (B,) end; the clean end."""
        return torch.full_like(t, self.student.denoiser.path.t_min)

    def end_point(self, denoiser: Denoiser, cond: Cond, y: Tensor | None) -> EndPoint:
        """f of a network: its x0."""
        bound = denoiser.bind(cond, y)
        return lambda x, t: bound(x, t).x0

    def target_point(self, cond: Cond, y: Tensor | None) -> EndPoint:
        """f^-."""
        return self.end_point(self.target.net, cond, y)

    def compare(self, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, cond: Cond, y: Tensor | None) -> Tensor:
        """The weighted loss between two states, (B,)."""
        f, target = self.end_point(self.student.denoiser, cond, y), self.target_point(cond, y)
        distance = within(self.distance, self.student.mask(cond))
        return self.weighted(consistency_loss(f, target, x_t, t, x_s, s, self.end(t), distance), t, s)

    def weighted(self, loss: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """w(t, s) loss, (B,)."""
        return self.weighting(t, s, self.student.denoiser.path).to(loss) * loss

    def after_step(self) -> None:
        self.target.mu = self.mu ** self.intervals.pace(self.progress)
        self.target.update()


class ConsistencyDistillation(Consistency):
    """CD with any path, teacher solver, intervals and distance.

    Args:
        step: the teacher's move from t to s.
        guidance: of the teacher.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        step: TeacherStep = TeacherStep(Heun()),
        guidance: TeacherGuidance = TeacherGuidance(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.step = step
        self.guide(guidance)

    def loss(self, batch: Batch) -> Terms:
        """Consistency between the ends of one teacher step."""
        x0, cond, y = self.student.prepare(batch)
        w = self.guidance.draw(x0)
        states = self.states(x0, cond, y, w)
        return {"consistency": self.compare(*states, self.guidance.student_cond(cond, w), y).mean()}

    def states(self, x0: Tensor, cond: Cond, y: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x_t, t, x_s, s): two states of one trajectory of the teacher, guided by w: (B,)."""
        teacher = self.guidance.teacher(self.teacher, cond, y, w)
        t, s = self.times(x0)
        end, close = self.end(t), 1e-9 * (self.student.denoiser.path.t_max - self.student.denoiser.path.t_min)
        s = torch.where(s > end + close, s, end)  # the end itself where it is met but for rounding
        x_t = self.state(teacher, x0, t, y)
        return x_t, t, self.step(teacher, self.student.denoiser.path, x_t, t, s, y), s

    def state(self, teacher: Denoise, x0: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """x_t: noised data."""
        return self.student.denoiser.path.sample(x0, torch.randn_like(x0), t, y)
