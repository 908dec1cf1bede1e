"""PNDM (arXiv:2202.09778): Adams-Bashforth weights on the DDIM step, started by pseudo Runge-Kutta steps of DDIM.

transfer  T(z, t -> s, e) = (a_s/a_t) z + a_s (rho_s - rho_t) e
PLMS      first step   e = (eps(z, t) + eps(T(z, t -> s, eps), s))/2          (2 NFE)
PNDM      first three  e = (e_1 + 2 e_2 + 2 e_3 + e_4)/6 at t, m, m, s with m = (t + s)/2          (4 NFE each)
then      T(z, t -> s, sum_j w_j eps_j), w as in ipndm.py; of a Runge-Kutta step only e_1 is remembered     (1 NFE)

S-PNDM is PLMS(2), F-PNDM is PNDM(), and PLMS(4) is the PLMS sampler of Stable Diffusion (diffusers' PNDMScheduler with
skip_prk_steps). The weights assume equal steps: both are of second order on a grid that is not uniform in rho. A pseudo
Runge-Kutta step multiplies errors of eps by its ratio of rho: PNDM() wants some ten steps.
Index conventions of the official code (its states sit one index away from their labels) belong to the path, not here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Row, Solver, Stage
from fewstep.solvers.ipndm import adams_bashforth


@dataclass(frozen=True)
class PseudoNumerical(Solver):
    """`stages` is a starting step, of which there are `starts`; `points` is how many estimates later steps combine.

    At a singular end a starting step is DDIM's, of one evaluation.
    """

    order, uses = 2, "eps"
    starts: ClassVar[int]

    points: int = 4

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"{type(self).__name__} combines at least 2 estimates, not {self.points}")

    def rows(self, path: Path, grid: Tensor) -> Iterator[Row]:
        start = list(super().rows(path, grid[: self.starts + 1]))
        yield from start
        first = [0, *(n + 1 for n, row in enumerate(start) if row.last)]  # evaluations at the start of a step
        (a, _, s), times = path.schedule(grid), grid.tolist()
        gain, step = (a[1:] / a[:-1]).tolist(), (s[1:] - a[1:] * s[:-1] / a[:-1]).tolist()
        for i in range(self.starts, len(gain)):
            now, k = first[i], min(i + 1, self.points)
            e = [0.0] * (now - first[i + 1 - k] + 1)
            for j, w in enumerate(adams_bashforth(k)):
                e[now - first[i - j]] = step[i] * w
            yield Row(times[i], times[i + 1], (gain[i],), tuple(e), uses="eps")
            first.append(now + 1)


def transfer(path: Path, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(weight of the state, weight of eps) of DDIM's step t -> s."""
    (at, _, st), (as_, _, ss) = path.schedule(t), path.schedule(s)
    return as_ / at, ss - as_ * st / at


@dataclass(frozen=True)
class PLMS(PseudoNumerical):
    """Improved Euler first, then 2, 3, ... up to `points` estimates: n + 1 evaluations, 1 for n = 1 into clean data."""

    starts = 1

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        x, e = transfer(path, t, s)
        return Stage(t, (x,), (e,)), Stage(s, (torch.zeros_like(x), x), (e / 2, e / 2))


@dataclass(frozen=True)
class PNDM(PseudoNumerical):
    """F-PNDM: three pseudo Runge-Kutta steps, then four estimates: n + 9 evaluations for n > 3 steps."""

    starts = 3

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        middle = (t + s) / 2
        (x, e), (x_mid, e_mid) = transfer(path, t, s), transfer(path, t, middle)
        no = torch.zeros_like(x)
        return (
            Stage(t, (x_mid,), (e_mid,)),
            Stage(middle, (no, x_mid), (e_mid,)),
            Stage(middle, (no, no, x), (e,)),
            Stage(s, (no, no, no, x), (e / 6, e / 3, e / 3, e / 6)),
        )
