"""Noise consistency training: teach a frozen one-step generator g a new control, without data (NCT, arXiv:2506.19741).

    z ~ N(0, I),  c of g(z),   z_t = a_t z + s_t eps with a^2 + s^2 = 1:   N(0, I) at every t, and at t_max independent of c
    L = d( h(z_t, t, c), sg h(z_s, s, c) )  +  boundary d( h(z, 0, c), g(z) )          the same z and eps at t and s

This is consistency training with "data" z ~ p(z|c): its fixed point is g after the flow that takes N(0, I) to p(z|c), so that
h(eps, t_max, c) is a sample of g's law given c. With other noise at s than at t, h would be E[g(z) | c].

h = g + branch (nets/control_branch.py). The branch is told t, which the abstract's h(z, c) is not: with g = id and c = sign z, the same z > 0 must go
to itself at t = 0 and to the quantile of |z| at t_max.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.distances import Distance, SquaredL2
from fewstep.distill.alternating import energy_terms
from fewstep.distill.base import Distiller
from fewstep.distill.intervals import Adjacent, Doubling, Intervals
from fewstep.generator import Generator
from fewstep.nets.adapter import trainable
from fewstep.nets.control_branch import CONTROL, ControlBranch
from fewstep.paths import Path, Trig
from fewstep.train.shell import Batch, Terms


@dataclass(frozen=True)
class Control(ABC):
    """x0 (B, ...) -> what the control says of it, by the names of the branch's conditions, each (B,) or (B, ...)."""

    @abstractmethod
    def __call__(self, x0: Tensor) -> Cond: ...


@dataclass(frozen=True)
class Nearest(Control):
    """`label`: the nearest of these points, such as the modes of a mixture."""

    points: Sequence[Sequence[float]]

    def __call__(self, x0: Tensor) -> Cond:
        return {"label": torch.cdist(x0.flatten(1), torch.tensor(self.points).to(x0)).argmin(1)}


@dataclass(frozen=True)
class Recognised(Control):
    """`label`: what a classifier (B, ...) -> logits (B, K) sees."""

    classifier: nn.Module

    def __call__(self, x0: Tensor) -> Cond:
        return {"label": self.classifier.to(x0.device)(x0).argmax(1)}


@dataclass(frozen=True)
class Measured(Control):
    """`c`: <direction, x0> + noise xi, a scalar condition."""

    direction: tuple[float, ...]
    noise: float = 0.0

    def __call__(self, x0: Tensor) -> Cond:
        c = x0.flatten(1) @ torch.tensor(self.direction).to(x0)
        return {"c": c + self.noise * torch.randn_like(c)}


def named(control: Cond) -> dict[str, Tensor]:
    """The same as conditions of a `ControlBranch`."""
    return {f"{CONTROL}{k}": v for k, v in control.items()}


class NCT(Distiller):
    """The student is the teacher, of one step, with a branch. Batches give shapes and the conditions of the teacher.

    Args:
        control: of the teacher's samples.
        branch: see `ControlBranch`; it takes the names that the control gives.
        intervals: (t, s) on `path`, whose t are those of the first noise.
        boundary: its factor; distance: d.
    Raises:
        ValueError: a path on which noise changes its variance.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        control: Control,
        branch: nn.Module,
        intervals: Intervals = Adjacent(Doubling(8, 64)),
        path: Path = Trig(),
        boundary: float = 1.0,
        distance: Distance = SquaredL2(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        a, _, s = path.schedule(torch.linspace(path.t_min, path.t_max, 9, dtype=torch.float64))
        if (a**2 + s**2 - 1).abs().max() > 1e-6:
            raise ValueError(f"the noise must keep its variance, a^2 + s^2 = 1, which it does not on {path}")
        teacher.steps = 1
        teacher.solver, teacher.grid = self.student.solver, self.student.grid
        self.control, self.intervals, self.path = control, intervals, path
        self.boundary, self.distance = boundary, distance
        self.student.denoiser.net = ControlBranch(self.student.denoiser.net, branch, path.t_max)
        trainable(self.student.train())

    def loss(self, batch: Batch) -> Terms:
        """Consistency between two noises of one sample, and the boundary at t_min."""
        x0, cond, y = self.student.prepare(batch)
        z, eps = torch.randn_like(x0), torch.randn_like(x0)
        with torch.no_grad():
            known = self.teacher.generate(z, cond, y)
            control = self.control(known)
        t, s = (v.to(x0.device) for v in self.intervals(len(x0), self.path, self.progress))

        def h(v: Tensor, at: Tensor) -> Tensor:
            return self.student.generate(v, {**cond, **named(control), f"{CONTROL}time": at}, y)

        with torch.no_grad():
            wanted = h(self.path.sample(z, eps, s), s)
        terms = {"consistency": self.distance(h(self.path.sample(z, eps, t), t), wanted).mean()}
        clean = self.distance(h(z, torch.full_like(t, self.path.t_min)), known)
        return terms | {"boundary": self.boundary * clean.mean()}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """energy: distance of controlled samples from the teacher's, whose controls they were asked for; obeyed: of labels, those that are seen."""
        x0, cond, y = cast(Generator, model).prepare(batch)
        known = self.teacher.generate(torch.randn_like(x0), cond, y)
        control = self.control(known)
        own = cast(Generator, model).generate(torch.randn_like(x0), {**cond, **named(control)}, y)
        figures = {"energy": energy_terms(own, known)}
        seen = self.control(own)
        return figures | {
            f"obeyed_{k}": (seen[k] == v).float() for k, v in control.items() if not v.is_floating_point()
        }

    def preview(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """None: a generator's own pictures ask for no control."""
        return {}
