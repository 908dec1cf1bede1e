"""Trajectory regression: the student's evaluation learns where the teacher's deterministic trajectory ends.

    x_T = start(eps, y)      F(x_T) = teacher's ODE solution at the clean end      L = d( f(x_T, T), F(x_T) )

The distillation term of SinSR (arXiv:2311.14760, eq. 9) and, with stored pairs, knowledge distillation (arXiv:2101.02388), whose 1/2
before the square is left out. For few steps each of the student's times has its own regression, from the teacher's state there:

    k ~ U{0 .. K-1}      L = d( the student's one step t_k -> end from x_{t_k}, F(x_T) )

On any path. Pairs and states come from the teacher during training or from disk (distill/pool.py).
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.denoiser import Denoise
from fewstep.distances import Distance, SquaredL2
from fewstep.distill.base import Distiller
from fewstep.distill.line import step
from fewstep.distill.pool import PairPool, Pairs, Trajectories, stored_pairs, stored_trajectories
from fewstep.generator import Generator
from fewstep.paths import Path
from fewstep.solvers import GammaSampling
from fewstep.train.shell import Batch, Terms


def regression_loss(
    student: Callable[[Tensor], Tensor], noise: Tensor, target: Tensor, distance: Distance = SquaredL2()
) -> Tensor:
    """Distance of student(noise) to target per sample, (B,)."""
    return distance(student(noise), target)


def state_loss(
    f: Denoise,
    path: Path,
    x_t: Tensor,
    t: Tensor,
    target: Tensor,
    end: Tensor,
    distance: Distance,
    y: Tensor | None = None,
) -> Tensor:
    """d(f's one step t -> end from x_t, target), (B,): f's x0 where the end is free of noise. x_t, target: (B, ...); t, end: (B,)."""
    return distance(step(path, x_t, f(x_t, t).x0, t, end, y), target)


class TrajectoryRegression(Distiller):
    """Regress the teacher's end points from the same noise, through all steps of the student.

    Args:
        pool: how teacher pairs are made and reused; without one each batch gets fresh pairs. Batches of pairs need none.
        distance: d; the square loses detail where the teacher's map is rough, a perceptual distance keeps it.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        pool: PairPool | None = None,
        distance: Distance = SquaredL2(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.pool, self.distance = pool or PairPool(), distance
        self.guide(self.pool.guidance)

    def pairs(self, batch: Batch) -> Pairs:
        """Noise, teacher end point and conditions for one iteration."""
        stored = stored_pairs(batch)
        return self.pool.draw(self.teacher, self.student.prepare(batch)) if stored is None else stored

    def loss(self, batch: Batch) -> Terms:
        """Distance of the student's own sample to the teacher's from the same noise."""
        noise, target, _, cond, y = self.pairs(batch)
        loss = regression_loss(lambda n: self.student.generate(n, cond, y), noise, target, self.distance)
        return {"distill": loss.mean()}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """As every distiller, or on a batch of pairs their agreement alone: there is no data to compare with."""
        pairs = stored_pairs(batch)
        if pairs is None:
            return super().evaluate(model, batch)
        own = cast(Generator, model).generate(pairs.noise, pairs.cond, pairs.y)
        return self.closeness(own, pairs.target)

    def preview(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return super().preview(model, batch) if stored_pairs(batch) is None else {}


class StateRegression(TrajectoryRegression):
    """Few-step regression of the end point, from the teacher's states at the student's own times.

    It is sampled with fresh noise between its steps, which brings back the marginals that the states have; `solver` may be DDIM.

    Args:
        stored: the times of the states that batches from disk hold, as their manifest names them; the student's times between
            start and end must be among them.
    """

    sampler = GammaSampling(1.0)

    def __init__(self, teacher: Generator, iterations: int, stored: tuple[float, ...] = (), **kwargs: Any) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.stored = tuple(stored)

    @property
    def times(self) -> Tensor:
        """(n + 1,) float64: where the student is evaluated, and the clean end."""
        return self.student.grid(self.student.denoiser.path, self.student.steps)

    def trajectories(self, batch: Batch) -> Trajectories:
        """The teacher's states at the student's times, for one iteration."""
        times, path = self.times, self.teacher.denoiser.path
        stored = stored_trajectories(batch, path, times, self.stored)
        return self.pool.trajectories(self.teacher, self.student.prepare(batch), times) if stored is None else stored

    def loss(self, batch: Batch) -> Terms:
        """Distance of one step to the end from a random one of the states."""
        states, cond, y = self.trajectories(batch)
        path, times = self.student.denoiser.path, self.times.to(states.device)
        k, rows = pick(states)
        f, target, end = self.student.denoiser.bind(cond, y), states[:, -1], times[-1].expand(len(states))
        return {"distill": state_loss(f, path, states[rows, k], times[k], target, end, self.distance, y).mean()}


def pick(states: Tensor) -> tuple[Tensor, Tensor]:
    """(k, rows): for each of the (B, n + 1, ...) trajectories a random state that has a next one."""
    n = states.shape[1] - 1
    return torch.randint(0, n, (len(states),), device=states.device), torch.arange(len(states), device=states.device)
