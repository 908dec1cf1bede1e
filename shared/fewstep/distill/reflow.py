"""Reflow: a new flow along the straight lines between the ends of the teacher's trajectories (arXiv:2209.03003), and InstaFlow.

    pairs (z, x) of the teacher,   x_t = a x + b y + s z,   t ~ U
    reflow          L = d( u(x_t, t), a' x + s' z )              z - x on a rectified flow: 2-RF, then 3-RF, ...
    distillation    L = d( x0 of u at (x_t, t), x ),  t among the k times of k equal steps     (InstaFlow, arXiv:2309.06380; k = 1: t = T)

Distil from a 2-RF, not from a 1-RF: one step can only learn a map that is nearly straight. On any path (only on a rectified flow are the
lines those of constant velocity); times here run from 0 (data) to noise, in the papers the other way.

The official code of the distillation squares velocities for k > 1, which is 1/t^2 of the square used here; the minimiser is the same.
"""

from typing import Any

from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.distances import Distance
from fewstep.distill.pool import Pairs
from fewstep.distill.trajectory import TrajectoryRegression
from fewstep.generator import Generator, pretrained
from fewstep.paths import Path
from fewstep.solvers import DDIM
from fewstep.times import GridTimes, TimeSampler, UniformTimes
from fewstep.train.shell import Batch, Terms


def velocity_loss(
    f: Denoise, path: Path, noise: Tensor, target: Tensor, t: Tensor, distance: Distance, y: Tensor | None = None
) -> Tensor:
    """d(f's velocity at x_t, that of the line from noise to target), (B,); noise, target, y: (B, ...), t: (B,)."""
    e = f(path.sample(target, noise, t, y), t)
    return distance(path.velocity(e.x0, e.eps, t), path.velocity(target, noise, t))


def data_loss(
    f: Denoise, path: Path, noise: Tensor, target: Tensor, t: Tensor, distance: Distance, y: Tensor | None = None
) -> Tensor:
    """d(f's x0 at x_t, target), (B,), shapes as `velocity_loss`. With the square on a rectified flow, t^2 times that."""
    return distance(f(path.sample(target, noise, t, y), t).x0, target)


def reflowed(source: str, steps: int = 25) -> Generator:
    """The student of a reflow, an artifact, as the teacher of the next round or of a distillation: in `steps` Euler steps.

    Raises:
        ArtifactError: see `pretrained`.
    """
    teacher = pretrained(source)
    teacher.solver, teacher.steps = DDIM(), steps
    return teacher


class Reflow(TrajectoryRegression):
    """The velocity of the line between the ends of each pair. Its student is the teacher of the next round (`reflowed`).

    Args:
        times: sampler of t.
    """

    sampler = DDIM()

    def __init__(self, teacher: Generator, iterations: int, times: TimeSampler = UniformTimes(), **kwargs: Any) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.times = times

    def loss(self, batch: Batch) -> Terms:
        """Reflow on a batch of pairs."""
        noise, target, _, cond, y = self.pairs(batch)
        path = self.student.denoiser.path
        t = self.times(len(noise), path).to(noise.device)
        f = self.student.denoiser.bind(cond, y)
        return {"reflow": velocity_loss(f, path, noise, target, t, self.distance, y).mean()}


class FlowDistillation(TrajectoryRegression):
    """InstaFlow's distillation: regress the end point from the line's states at the student's own `steps` times.

    `distance` compares samples; a perceptual one gives the best single step.
    """

    sampler = DDIM()

    def loss(self, batch: Batch) -> Terms:
        """Distillation on a batch of pairs."""
        return {"distill": self.distilled(self.pairs(batch)).mean()}

    def distilled(self, pairs: Pairs) -> Tensor:
        """`data_loss` at random ones of the student's times, (B,)."""
        noise, target, _, cond, y = pairs
        path = self.student.denoiser.path
        t = GridTimes(self.student.steps, self.student.grid)(len(noise), path).to(noise.device)
        f = self.student.denoiser.bind(cond, y)
        return data_loss(f, path, noise, target, t, self.distance, y)
