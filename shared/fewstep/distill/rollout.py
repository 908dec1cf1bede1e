"""The student's own sampling inside a loss: from noise to its estimate at one of its times (DMD2's backward simulation, arXiv:2405.14867).

    x_{t_0} = start(noise),   x_{t_{k+1}} = the student's step from x_{t_k},   and at the exit step k:  x0 = f(x_{t_k}, t_k)

Few-step students then train on the states that they meet when they sample, not on noised data.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.causal import CausalGenerator
from fewstep.denoiser import Cond
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.per_sample import like
from fewstep.sampling import sample


@dataclass(frozen=True)
class Exit(ABC):
    """(n, steps) -> (n,) indices of steps in [0, steps): where each sample of a batch leaves the rollout."""

    @abstractmethod
    def __call__(self, n: int, steps: int) -> Tensor: ...


@dataclass(frozen=True)
class LastStep(Exit):
    """The last step, whose x0 is the student's sample: what one fake score for all exits cannot ask for, see docs/distillation.md."""

    def __call__(self, n: int, steps: int) -> Tensor:
        return torch.full((n,), steps - 1)


@dataclass(frozen=True)
class RandomStep(Exit):
    """One step for the whole batch, each as likely, and the same on all ranks, which then take the same time: DMD2."""

    def __call__(self, n: int, steps: int) -> Tensor:
        k = torch.randint(steps, ())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shared: list[Tensor] = [k]
            torch.distributed.broadcast_object_list(shared)
            k = shared[0]
        return k.expand(n)


@dataclass(frozen=True)
class EachStep(Exit):
    """A step of its own for every sample, each as likely: TDM (arXiv:2503.06674). Costs all steps."""

    def __call__(self, n: int, steps: int) -> Tensor:
        return torch.randint(steps, (n,))


class Reached(NamedTuple):
    """Where a rollout ended: the states x: (B, ...) at times t: (B,), the student's estimate there, its next times s: (B,).

    target: what the step from x is compared with, by methods that have it at hand (`JudgedStates`).
    """

    x: Tensor
    t: Tensor
    estimate: Estimate
    s: Tensor
    target: Tensor | None = None

    @property
    def wanted(self) -> Tensor:
        """The target, of methods that give one."""
        assert self.target is not None
        return self.target


@dataclass(frozen=True)
class Rollout:
    """noise -> Reached, by the student's own solver, grid and steps.

    Args:
        exit: where it ends.
        through: so many steps before the exit pass gradients on too; none unless given, and at least `steps` for all of them.
    """

    exit: Exit = RandomStep()
    through: int = 0

    def __call__(self, student: Generator, noise: Tensor, cond: Cond, y: Tensor | None = None) -> Reached:
        """noise: (B, ...). Gradients flow through the evaluation at the exit, and as far before it as asked for."""
        exit_at = self.exit(len(noise), student.steps).to(noise.device)
        if isinstance(student, CausalGenerator):
            return self.self_forced(student, noise, exit_at, cond, y)
        return self.reach(student, noise, exit_at, cond, y)

    def self_forced(
        self, student: CausalGenerator, noise: Tensor, exit_at: Tensor, cond: Cond, y: Tensor | None = None
    ) -> Reached:
        """Block by block, each given those that the student has made itself (Self-Forcing, arXiv:2506.08009).

        All blocks leave at the same step; the estimate there, without its graph, is what the next block is given.
        """
        past, reached, told = noise.narrow(student.axis, 0, 0), [], cond
        for block in student.blocks(noise):
            told = student.continued(told, past)
            reached.append(self.reach(student, block, exit_at, told, y))
            past = student.joined((past, reached[-1].estimate.x0.detach()))
        x0, eps = (student.joined(getattr(r.estimate, name) for r in reached) for name in ("x0", "eps"))
        return Reached(student.joined(r.x for r in reached), reached[0].t, Estimate(x0, eps), reached[0].s)

    def reach(self, student: Generator, noise: Tensor, exit_at: Tensor, cond: Cond, y: Tensor | None = None) -> Reached:
        """The same for given exits: (B,)."""
        path, steps = student.denoiser.path, student.steps
        times = student.grid(path, steps)
        f, x = student.denoiser.bind(cond, y), student.begin(noise, y, float(times[0]))
        for k in range(int(exit_at.max())):
            passes = k >= exit_at - self.through  # (B,)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.through > 0 and bool(passes.any())):
                moved = sample(f, x, path, student.solver, times[k : k + 2], y)
            if moved.requires_grad:
                moved = torch.where(like(passes, x), moved, moved.detach())
            x = torch.where(like(k < exit_at, x), moved, x)
        times = times.to(noise.device)
        t = times[exit_at]
        return Reached(x, t, f(x, t), times[exit_at + 1])


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """What is computed inside passes gradients through these networks but gives their parameters none."""
    trained = [p for network in networks for p in network.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
