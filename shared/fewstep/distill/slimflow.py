"""SlimFlow: a smaller student for one step (arXiv:2407.12718). Give it as `student`; its weights may be random.

Annealing reflow goes from ordinary flow matching to reflow, so that a student that is not the teacher's copy need not begin with pairs:

    (z, x) of the teacher,   z' = sqrt(1 - beta^2) z + beta eps,   beta: 1 -> 0,       L = reflow's loss on (z', x)

Flow-guided distillation adds to the pairs a term without any: from fresh z, one evaluation of the teacher on the student's own line,

    L = d( f(z, T), x )  +  d( f(z', T), sg D(x_t, t) ),    x_t = the line of sg f(z', T) and z' at t ~ U(.2, .8)

with D the teacher's x0. Distances compare samples; on a rectified flow those of velocities are the same, since z - u(z, T) is f. The second
term has the student's map as its fixed point only where the teacher is straight: distil from a reflowed one, as the paper does.
On any path. The official flip of pairs is left to the data. Of its two guided terms this is the one that is called.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.distances import Distance
from fewstep.distill.reflow import FlowDistillation, Reflow, velocity_loss
from fewstep.generator import Generator, Prepared
from fewstep.paths import Path
from fewstep.times import TimeSampler, UniformTimes
from fewstep.train.shell import Batch, Terms


@dataclass(frozen=True)
class Annealing(ABC):
    """beta(progress) in [0, 1], 1 at the start; progress in [0, 1] is the share of the training that is done, K / iterations = `share`."""

    share: float = 0.5

    def __post_init__(self) -> None:
        if self.share <= 0:
            raise ValueError(f"annealing takes a positive share of the training, not {self.share}")

    @abstractmethod
    def __call__(self, progress: float) -> float: ...


@dataclass(frozen=True)
class LinearAnnealing(Annealing):
    """1 - min(1, k/K)."""

    def __call__(self, progress: float) -> float:
        return 1 - min(1.0, progress / self.share)


@dataclass(frozen=True)
class CosineAnnealing(Annealing):
    """(1 + cos(pi min(1, k/K)))/2."""

    def __call__(self, progress: float) -> float:
        return (1 + math.cos(math.pi * min(1.0, progress / self.share))) / 2


@dataclass(frozen=True)
class ExponentialAnnealing(Annealing):
    """exp(-k/K): it never reaches 0."""

    def __call__(self, progress: float) -> float:
        return math.exp(-progress / self.share)


class AnnealingReflow(Reflow):
    """Reflow whose pairs begin independent.

    Args:
        beta: the annealing.
    """

    def __init__(self, teacher: Generator, iterations: int, beta: Annealing = LinearAnnealing(), **kwargs: Any) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.beta = beta

    def loss(self, batch: Batch) -> Terms:
        """Reflow on a batch of pairs, at this iteration's beta."""
        noise, target, _, cond, y = self.pairs(batch)
        path, beta = self.student.denoiser.path, self.beta(self.progress)
        t = self.times(len(noise), path).to(noise.device)
        noise = math.sqrt(1 - beta**2) * noise + beta * torch.randn_like(noise)
        f = self.student.denoiser.bind(cond, y)
        return {"reflow": velocity_loss(f, path, noise, target, t, self.distance, y).mean()}

    def figures(self) -> dict[str, float]:
        return {"train/beta": self.beta(self.progress)}


def guided_loss(
    f: Denoise, teacher: Denoise, path: Path, noise: Tensor, t: Tensor, distance: Distance, y: Tensor | None = None
) -> Tensor:
    """d(f(z, T), sg D(x_t, t)), x_t on f's own line, (B,); noise, y: (B, ...), t: (B,)."""
    e = f(path.start(noise, y), torch.full_like(t, path.t_max))
    x0 = e.x0  # estimates are lazy: first read under no_grad it would have no gradient
    with torch.no_grad():
        wanted = teacher(path.sample(x0, e.eps, t, y), t).x0
    return distance(x0, wanted)


class GuidedDistillation(FlowDistillation):
    """One-step distillation from pairs plus the flow-guided term.

    Args:
        times: sampler of its t; on [0, 1] the default is U(.2, .8).
    """

    def __init__(
        self, teacher: Generator, iterations: int, times: TimeSampler = UniformTimes(margin=0.2), **kwargs: Any
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.times = times

    def loss(self, batch: Batch) -> Terms:
        """Both terms; the second has the anchors and conditions of the first, and its own noise and guidance."""
        pairs = self.pairs(batch)
        path = self.student.denoiser.path
        t = self.times(len(pairs.noise), path).to(pairs.noise.device)
        cond = {k: v for k, v in pairs.cond.items() if k != "w" or not self.pool.guidance.told}
        teacher, cond = self.pool.guided(self.teacher, Prepared(pairs.x0, cond, pairs.y))
        f, noise = self.student.denoiser.bind(cond, pairs.y), torch.randn_like(pairs.noise)
        guided = guided_loss(f, teacher, path, noise, t, self.distance, pairs.y)
        return {"distill": self.distilled(pairs).mean(), "guided": guided.mean()}
