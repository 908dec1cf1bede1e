"""sCM: consistency in the limit of no interval (arXiv:2410.11081; SANA-Sprint, arXiv:2503.09641).

    x_t = cos(t) x0 + sin(t) sd z,    f(x, t) = cos(t) x - sin(t) sd F(x, t),    F = u/sd, the student's velocity
    tangent    g = -cos^2 (sd F - dx/dt) - r cos sin (x + sd dF/dt), for r = 1 this is cos(t) df/dt
    loss       e^(-w(t)) / (sd tan t) * mean |F - sg(F) - g/(|g| + c)|^2 + w(t)

r goes from 0 to 1 in the warm-up. dx/dt is the data's (sCT) or the teacher's, guided or not (sCD). cos sin dF/dt is one
derivative, along (cos sin dx/dt, cos sin): nothing is divided by cos. w is learned, the log of the loss at t; it is no
part of the student that is saved.

Conventions. |g| is the norm of the whole sample (the paper, SANA-Sprint) or its root mean square
(`Normalise(per_element=True)`, FastGen): c = 0.1 means different things. The square is averaged over the elements;
where others sum, w takes up the difference. F in the tangent is that of the student's own forward. Networks whose time
label is steep (1000 t) make dF/dt large: the paper and SANA-Sprint use t itself.

The student and the teacher are on `Trig(sd)`: trained there, or taken there from another path by `converted.on_path`,
SANA-Sprint's way. `TrigFlow(sd)` is the paper's scaling of the network.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.velocity import OfTeacher, Velocity
from fewstep.generator import Generator
from fewstep.jvp import Mode, jvp
from fewstep.paths import Trig, expand
from fewstep.solvers import GammaSampling
from fewstep.times import LogNormalTimes, TimeSampler
from fewstep.train.shell import Batch, Terms, scheduled


def tangent(F: Tensor, rate: Tensor, x: Tensor, dx: Tensor, t: Tensor, sd: float, r: float) -> Tensor:
    """g from F, rate = cos sin dF/dt, x and dx = dx/dt, all (B, ...), at t: (B,)."""
    cos, sin = expand(t.cos(), x), expand(t.sin(), x)
    return -(cos**2) * (sd * F - dx) - r * (cos * sin * x + sd * rate)


@dataclass(frozen=True)
class Normalise:
    """g/(|g| + c), |g| over the sample; per_element: the root of the mean square in its place."""

    c: float = 0.1
    per_element: bool = False

    def __call__(self, g: Tensor) -> Tensor:
        flat = g.flatten(1)
        norm = flat.norm(dim=1) / (flat.shape[1] ** 0.5 if self.per_element else 1.0)
        return g / expand(norm + self.c, g)


def scm_loss(F: Tensor, g: Tensor, t: Tensor, sd: float, w: Tensor) -> Tensor:
    """e^(-w)/(sd tan t) mean |F - sg(F) - sg(g)|^2 + w, (B,)."""
    square = (F - F.detach() - g.detach()).square().flatten(1).mean(1)
    return (-w).exp() / (sd * t.tan()).to(square) * square + w


class LogVariance(nn.Module):
    """w(t): (B,) -> (B,), a cosine series on [0, pi/2], 0 at the start."""

    def __init__(self, terms: int = 16) -> None:
        super().__init__()
        self.series = nn.Parameter(torch.zeros(terms))

    def forward(self, t: Tensor) -> Tensor:
        k = torch.arange(len(self.series), device=t.device)
        return (2 * k * t[:, None]).cos().to(self.series.dtype) @ self.series


class SCM(Distiller):
    """sCM from a teacher or from data.

    Args:
        times: log(sd tan t) ~ N(mean, std^2).
        velocity: dx/dt; guidance: of the teacher, for its velocity.
        warmup: iterations until r = 1.
        normalise: of the tangent; weight: w, fixed at 0 if it is frozen.
        mode: of the derivative.
    Raises:
        ValueError: paths that are not `Trig`.
    """

    sampler = GammaSampling(1.0)

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        times: TimeSampler = LogNormalTimes(-1.0, 1.4),
        velocity: Velocity = OfTeacher(),
        guidance: TeacherGuidance = TeacherGuidance(),
        warmup: int = 10_000,
        normalise: Normalise = Normalise(),
        weight: LogVariance | None = None,
        mode: Mode = "forward",
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        path = self.student.denoiser.path
        if not isinstance(path, Trig):
            raise ValueError(  # noqa: TRY004 (a wrong choice of path)
                f"sCM is on the trigonometric path, not {path}; fewstep.converted.on_path takes networks there"
            )
        self.path, self.times, self.velocity, self.warmup = path, times, velocity, warmup
        self.normalise, self.weight = normalise, weight or LogVariance()
        self.mode: Mode = mode
        self.guide(guidance)

    def loss(self, batch: Batch) -> Terms:
        """The student's velocity against itself moved along the tangent."""
        x0, cond, _ = self.student.prepare(batch)
        path, sd, scale = self.path, self.path.sigma_data, self.guidance.draw(x0)
        t, eps = self.times(len(x0), path).to(x0.device), torch.randn_like(x0)
        x_t = path.sample(x0, eps, t)
        dx = self.velocity(self.guidance.teacher(self.teacher, cond, None, scale), path, x0, eps, x_t, t)
        student = self.student.denoiser.bind(self.guidance.student_cond(cond, scale))

        def F(x: Tensor, t: Tensor) -> Tensor:
            estimate = student(x, t)
            return path.velocity(estimate.x0, estimate.eps, t) / sd

        speed = t.cos() * t.sin()
        rate = jvp(F, (x_t, t), (expand(speed, x_t) * dx, speed), self.mode)
        out = F(x_t, t)
        g = self.normalise(tangent(out, rate, x_t, dx, t, sd, self.warm))
        return {"scm": scm_loss(out, g, t, sd, self.weight(t)).mean()}

    @property
    def warm(self) -> float:
        """r, the share of the warm-up that is done."""
        return min(self.done / self.warmup, 1.0) if self.warmup else 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The student and w, in one optimiser."""
        parameters = [*self.student.parameters(), *self.weight.parameters()]
        return scheduled(self.optimizer([p for p in parameters if p.requires_grad]))
