"""Pairs of which some are real data: the noise that the teacher's flow, run backwards, finds for them (RF++'s hybrid, arXiv:2405.20320).

    dx/dt = u(x, t) from t_min to t_max, x = x0 at the start,   noise = (x_T - (a + b) y)/s_T

by Heun's method: a reflow of such pairs is drawn to the data itself, not only to what the teacher makes of noise.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.pool import PairPool, Pairs, Trajectories
from fewstep.generator import Generator, Prepared
from fewstep.paths import Path


def encoded(denoise: Denoise, path: Path, x0: Tensor, times: Tensor, y: Tensor | None = None) -> Tensor:
    """The noise (B, ...) from which the flow of `denoise` leads to x0: (B, ...); times: (n + 1,) rising, t_min to t_max.

    Raises:
        ValueError: no finite velocity at one of the times; networks must know eps at the clean end, as those that predict a velocity do.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        estimate = denoise(x, t)
        u = path.velocity(estimate.x0, estimate.eps, torch.tensor([t], dtype=torch.float64, device=x.device), y)
        if not math.isfinite(u.sum().item()):
            raise ValueError(
                f"this teacher has no finite velocity at t = {t:g} on {path}, data cannot be inverted there"
            )
        return u

    x = x0
    for t, s in pairwise(times.tolist()):
        first = velocity(x, t)
        x = x + (s - t) / 2 * (first + velocity(x + (s - t) * first, s))
    a, b, sigma = (v.item() for v in path.schedule(times[-1].double()))
    return (x if y is None else x - (a + b) * y) / sigma


class HybridPool(PairPool):
    """A pool of pairs, not of trajectories; the remaining arguments are those of `PairPool`.

    Args:
        real: the probability that a pair is made of data.
        steps: Heun's, even in t.
    Raises:
        ValueError: a probability outside [0, 1].
    """

    def __init__(
        self,
        size: int = 0,
        fresh: int = 4,
        guidance: TeacherGuidance = TeacherGuidance(),
        real: float = 0.5,
        steps: int = 32,
    ) -> None:
        if not 0 <= real <= 1 or steps < 1:
            raise ValueError(f"real is a probability and steps >= 1, not {real} and {steps}")
        super().__init__(size, fresh, guidance)
        self.real, self.steps = real, steps

    @torch.no_grad()
    def make(self, teacher: Generator, data: Prepared) -> Pairs:
        """New pairs, the teacher's own first."""
        real = torch.rand(len(data.x0)) < self.real
        parts = [(super().make, ~real), (self.inverted, real)]
        return joined([kind(teacher, rows(data, which.nonzero()[:, 0])) for kind, which in parts if which.any()])

    def inverted(self, teacher: Generator, data: Prepared) -> Pairs:
        """Data with its noise."""
        path, (denoise, cond) = teacher.denoiser.path, self.guided(teacher, data)
        times = torch.linspace(path.t_min, path.t_max, self.steps + 1, dtype=torch.float64)
        return Pairs(encoded(denoise, path, data.x0, times, data.y), data.x0, data.x0, cond, data.y)

    def follow(self, teacher: Generator, data: Prepared, times: Tensor) -> Trajectories:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError("a HybridPool has pairs alone: methods of states take a PairPool")


def rows(data: Prepared, which: Tensor) -> Prepared:
    """These rows of a batch."""
    which = which.to(data.x0.device)
    return Prepared(
        data.x0[which], {k: v[which] for k, v in data.cond.items()}, None if data.y is None else data.y[which]
    )


def joined(parts: list[Pairs]) -> Pairs:
    """Their rows, one after the other."""
    noise, target, x0 = (torch.cat([getattr(p, k) for p in parts]) for k in ("noise", "target", "x0"))
    cond = {k: torch.cat([p.cond[k] for p in parts]) for k in parts[0].cond}
    return Pairs(
        noise, target, x0, cond, None if parts[0].y is None else torch.cat([p.y for p in parts if p.y is not None])
    )
