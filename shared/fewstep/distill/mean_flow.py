"""MeanFlow: learn the average velocity over [r, t], on a straight path (arXiv:2505.13447).

    U(x_t, t, r) = 1/(t - r) * integral of v over [r, t]           x_r = x_t - (t - r) U
    identity       U = v - (t - r) dU/dt,   dU/dt = v . grad_x U + d_t U
    loss           |d|^2 / sg(|d|^2 + c)^p,   d = U - sg(v - (t - r) dU/dt),   |d|^2 summed over the sample

v is that of the data, or of a teacher, guided or not. From data the guided field is made inside of the target (eq. 21),
of the student's own velocities, and conditions are dropped for a share of the samples, whose v stays as it is:

    v^w = w v + k u(x, t, t | c) + (1 - w - k) u(x, t, t | none)            effective scale w/(1 - k)

The order of times is the literature's, larger t is noisier; the network is told r (as "s") and not t - r. With a
teacher's noise-free v the weight dwells on short intervals that are solved already: take c about 1 then, or p lower.

The derivative is taken where r < t alone: with a quarter of such samples it costs half an evaluation of the batch.
"""

from typing import Any, cast

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.distill.average_velocity import Average, AverageVelocity
from fewstep.distill.jump_times import TimePairs
from fewstep.distill.velocity import OfData, Velocity
from fewstep.generator import Generator
from fewstep.jump import JumpGenerator
from fewstep.jvp import Mode, jvp
from fewstep.paths import expand
from fewstep.train.shell import Batch, Terms


def mean_flow_target(u: Average, x_t: Tensor, v: Tensor, t: Tensor, r: Tensor, mode: Mode = "forward") -> Tensor:
    """v - (t - r) dU/dt without gradient; x_t, v: (B, ...), t, r: (B,)."""
    # x moves along the flow, t advances, r stays.
    rate = jvp(u, (x_t, t, r), (v, torch.ones_like(t), None), mode)
    return v - expand(t - r, x_t) * rate


def mean_flow_loss(pred: Tensor, target: Tensor, power: float = 1.0, c: float = 1e-2) -> Tensor:
    """|pred - target|^2 / sg(|pred - target|^2 + c)^power, (B,)."""
    square = (pred - target.detach()).square().flatten(1).sum(1)
    return square / (square.detach() + c) ** power


class MeanFlow(AverageVelocity):
    """MeanFlow from data or from a teacher.

    Args:
        times: (t, r); others as of `AverageVelocity`.
        w, k: of the guided field from data (kappa in the paper).
        power, c: of the adaptive weight; 1 and 1e-2 in the official code, 0.75 for CIFAR-10.
        mode: of the derivative.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        student: Generator | None = None,
        times: TimePairs = TimePairs(),
        velocity: Velocity = OfData(),
        w: float = 1.0,
        k: float = 0.0,
        power: float = 1.0,
        c: float = 1e-2,
        mode: Mode = "forward",
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, student, times, velocity, **kwargs)
        self.w, self.k, self.power, self.c = w, k, power, c
        self.mode: Mode = mode

    def loss(self, batch: Batch) -> Terms:
        """The weighted square of the MeanFlow identity."""
        x0, eps, x_t, y, t, r, m, cond, told, kept, scale = self.drawn(batch)
        student, teacher = cast(JumpGenerator, self.student), self.guidance.teacher(self.teacher, cond, y, scale)
        v = self.velocity(teacher, student.denoiser.path, x0, eps, x_t, t, y)
        target = torch.where(expand(kept, v).bool(), self.guided(v, x_t, t, told, y), v)
        if m:  # beyond, r = t and the target is v
            rows = {name: value[:m] for name, value in told.items()}, None if y is None else y[:m]
            moving = mean_flow_target(
                lambda x, t, r: student.velocity(x, t, r, *rows), x_t[:m], target[:m], t[:m], r[:m], self.mode
            )
            target = torch.cat([moving, target[m:]])
        pred, mask = student.velocity(x_t, t, r, told, y), student.mask(cond)
        if mask is not None:  # the square is summed: what is 0 has no part in it
            pred, target = mask * pred, mask * target
        return {"mean_flow": mean_flow_loss(pred, target, self.power, self.c).mean()}

    @torch.no_grad()
    def guided(self, v: Tensor, x_t: Tensor, t: Tensor, cond: Cond, y: Tensor | None) -> Tensor:
        """v^w; evaluates only the branches that have a weight."""
        student, rest = cast(JumpGenerator, self.student), 1 - self.w - self.k
        out = v if self.w == 1.0 else self.w * v
        if self.k:
            out = out + self.k * student.velocity(x_t, t, t, cond, y)
        if abs(rest) > 1e-12:
            out = out + rest * student.velocity(x_t, t, t, {**cond, **student.unconditional(cond)}, y)
        return out
