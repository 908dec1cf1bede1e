"""Shortcut models: one jump of 2d is two jumps of d, on a straight path (arXiv:2410.12557).

    U(x_t, t, s) = (x_t - G(x_t, t -> s))/(t - s), the average velocity; the velocity itself for s = t
    flow           U(x_t, t, t) = v                                          three quarters of the batch
    consistency    U(x_t, t, s) = sg (U^-(x_t, t, m) + U^-(x_m, m, s))/2     m = (t + s)/2,  x_m = x_t - (t - m)
    U^-(x_t, t, m)
    loss           mean |U - target|^2 over both

v is that of the data (training from scratch) or of a teacher, guided or not. The network is told s; the paper tells it
d = t - s. Halves shorter than any jump that is learnt ask for the velocity.
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.distill.average_velocity import Average, ConsistentAverage
from fewstep.distill.jump_times import Halvings
from fewstep.distill.target import Target
from fewstep.distill.velocity import OfData, Velocity
from fewstep.generator import Generator
from fewstep.jump import JumpGenerator
from fewstep.paths import expand


@torch.no_grad()
def shortcut_target(u: Average, x_t: Tensor, t: Tensor, s: Tensor, smallest: Tensor) -> Tensor:
    """The mean of u over two halves of [s, t]; smallest: (B,) booleans, where u(x, t, t) stands for the halves."""
    m = (t + s) / 2
    first = u(x_t, t, torch.where(smallest, t, m))
    x_m = x_t - expand(t - m, x_t) * first
    return (first + u(x_m, m, torch.where(smallest, m, s))) / 2


class Shortcut(ConsistentAverage):
    """Shortcut models, from data or from a teacher.

    Args:
        times: the jumps; others as of `AverageVelocity`.
        mu: decay of the average that targets are computed with.
    """

    term: ClassVar[str] = "shortcut"

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        student: Generator | None = None,
        times: Halvings = Halvings(),
        velocity: Velocity = OfData(),
        mu: float = 0.999,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, student, times, velocity, **kwargs)
        self.halvings, self.target = times, Target(cast(JumpGenerator, self.student), mu)

    def interval_target(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond, y: Tensor | None) -> Tensor:
        """The average network's two halves."""
        net, near = self.target.net, self.halvings.smallest(t / 2, s / 2, self.student.denoiser.path)  # the halves
        return shortcut_target(lambda x, t, s: net.velocity(x, t, s, cond, y), x_t, t, s, near)

    def after_step(self) -> None:
        self.target.update()
