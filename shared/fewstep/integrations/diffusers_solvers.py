"""Steps as diffusers takes them where they are not simply a fewstep solver between neighbouring times of the grid.

DDIMScheduler and PNDMScheduler step by the stride N // n of an index table of N entries whatever their grid says, so
with `linspace` spacing, or where n does not divide N, the state is at a slightly other level than the next evaluation
assumes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.ancestral import Ancestral
from fewstep.solvers.base import Row, Solver, Stage, first_order
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.ipndm import adams_bashforth
from fewstep.solvers.wrapper import SolverWrapper


def stride(path: Path, n: int) -> int:
    """N // n of an index path."""
    return (int(path.t_max) + 1) // n


@dataclass(frozen=True)
class StridedDDIM(SolverWrapper):
    """DDIMScheduler: the step of `Ancestral(eta)` from t to t - N // n, to the end of the grid where that is below
    index 0.
    """

    solver: Solver = field(default_factory=lambda: Ancestral(0.0))

    def rows(self, path: Path, grid: Tensor) -> Iterator[Row]:
        t = grid[:-1]
        s = t - stride(path, len(t))
        (stage,) = self.solver.stages(path, t, torch.where(s < 0, grid[-1], s), ())
        noise = [0.0] * len(t) if stage.noise is None else stage.noise.tolist()
        for row in zip(t.tolist(), grid[1:].tolist(), stage.x[0].tolist(), stage.e[0].tolist(), noise, strict=True):
            yield Row(row[0], row[1], (row[2],), (row[3],), row[4])


@dataclass(frozen=True)
class StridedPNDM(Solver):
    """PNDMScheduler (arXiv:2202.09778): DDIM steps with eps from Adams-Bashforth weights. n + 1, or n + 9 evaluations.

    Args:
        runge_kutta: take the first three steps by the pseudo Runge-Kutta method, 4 evaluations each
            (`skip_prk_steps=False`), in place of one improved Euler step.
        velocity: combine the outputs of a v-predicting network, and convert the result at the state that the step
            leaves.
    """

    uses = "eps"
    order = 2

    runge_kutta: bool = False
    velocity: bool = False

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        """The first step, DDIM."""
        return DDIM().stages(path, t, s, past)

    def rows(self, path: Path, grid: Tensor) -> Iterator[Row]:
        n, step = len(grid) - 1, stride(path, len(grid) - 1)
        calls = list(
            self._runge_kutta(grid[:-1].tolist(), step) if self.runge_kutta else self._plms(grid[:-1].tolist(), step)
        )
        labels = [label for label, *_ in calls]
        inner = 12 if self.runge_kutta else 1
        for c, (label, base, start, end, weights) in enumerate(calls):
            end = grid[-1].item() if end < 0 else end
            x, e = self._combine(path, c, base, (start, end), labels, weights)
            last = n == 1 or c >= inner or (self.runge_kutta and c % 4 == 3)
            s = [*labels[1:], grid[-1].item()][c]
            yield Row(label, s, x, e, last=last, uses="eps")

    def _combine(
        self, path: Path, c: int, base: int, times: tuple[float, float], labels: list[float], weights: dict[int, float]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Weights of the states and estimates, newest first, of (a_e/a_s) X_base + (s_e - a_e s_s/a_s) sum_k w_k
        eps_k.
        """
        a, _, s = (v.tolist() for v in path.schedule(torch.tensor([*times, *labels], dtype=torch.float64)))
        gain = s[1] - a[1] * s[0] / a[0]
        x, e = [0.0] * (c + 1), [0.0] * (c + 1)
        x[c - base] = a[1] / a[0]
        for k, w in weights.items():
            e[c - k] = gain * w
            if self.velocity:  # v_k = (eps_k - s_k X_k)/a_k, and eps = a v + s X_base at the start of the step
                e[c - k] *= a[0] / a[2 + k]
                x[c - k] -= e[c - k] * s[2 + k]
        if self.velocity:
            x[c - base] += gain * s[0]
        return tuple(x), tuple(e)

    @staticmethod
    def _plms(t: list[float], step: int) -> Iterator[tuple[float, int, float, float, dict[int, float]]]:
        """(label, call whose state the step leaves, its start, its end, weights by call); the second time is called
        twice.
        """
        labels, used = [*t[:2], *t[1:]] if len(t) > 1 else t, []
        for c, label in enumerate(labels):
            if c == 1:
                yield label, 0, label + step, label, {1: 0.5, 0: 0.5}
                continue
            used = [c, *used[:3]]
            yield label, c, label, label - step, dict(zip(used, adams_bashforth(len(used)), strict=True))

    @staticmethod
    def _runge_kutta(t: list[float], step: int) -> Iterator[tuple[float, int, float, float, dict[int, float]]]:
        """The same with three Runge-Kutta steps of calls at t_0, twice at t_1 + step // 2, at t_1, ..."""
        if len(t) < 4:
            raise ValueError(f"three Runge-Kutta steps and Adams-Bashforth need at least 4 steps, not {len(t)}")
        half = step // 2
        labels = [v for i in range(3) for v in (t[i], t[i + 1] + half, t[i + 1] + half, t[i + 1])]
        for c, label in enumerate(labels):
            base = c - c % 4
            weights = {base: 1 / 6, base + 1: 1 / 3, base + 2: 1 / 3, c: 1 / 6} if c % 4 == 3 else {c: 1.0}
            yield label, base, labels[base], label - (0 if c % 2 else half), weights
        used = [8, 4, 0]
        for c, label in enumerate(t[3:], 12):
            used = [c, *used[:3]]
            yield label, c, label, label - step, dict(zip(used, adams_bashforth(4), strict=True))


@dataclass(frozen=True)
class LCMSampling(Solver):
    """LCMScheduler (arXiv:2310.04378): all noise is fresh, and x0 is blended with the state by the boundary condition

    x0' = c_skip x + c_out x0,   c_skip = d^2/(u^2 + d^2),  c_out = u/sqrt(u^2 + d^2),   u = scaling t,  d = 1/2
    """

    order = 1

    scaling: float = 10.0

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        as_, _, ss = path.schedule(s)
        u = self.scaling * t
        return (Stage(t, (as_ * 0.25 / (u**2 + 0.25),), (as_ * u / (u**2 + 0.25).sqrt(),), ss),)


@dataclass(frozen=True)
class TCDSampling(Solver):
    """TCDScheduler (arXiv:2402.19159): DDIM to index floor((1 - gamma) s), then diffuse to s; grids end at index 0."""

    order = 1

    gamma: float = 0.3

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        u = ((1 - self.gamma) * s).floor()
        (at, _, st), (as_, _, ss), (au, _, su) = path.schedule(t), path.schedule(s), path.schedule(u)
        kept = as_ * su / au
        return (Stage(t, (kept / st,), (as_ - at * kept / st,), (ss**2 - kept**2).clamp(min=0).sqrt()),)


@dataclass(frozen=True)
class LargeVariance(Solver):
    """DDPMScheduler with `fixed_large`: the posterior's mean with variance 1 - (a_t/a_s)^2; none is added at index
    0.
    """

    order = 1

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        (stage,) = Ancestral().stages(path, t, s, past)
        at, as_ = path.schedule(t)[0], path.schedule(s)[0]
        return (stage._replace(noise=torch.where(t > 0, (1 - (at / as_) ** 2).sqrt(), 0.0)),)


@dataclass(frozen=True)
class EulerAtFinal(SolverWrapper):
    """`euler_at_final` on top of the tail that the solver has: the last step is of first order."""

    def lookback(self, n: int) -> Sequence[int]:
        return [*self.solver.lookback(n)[:-1], 0]

    def regular(self, path: Path, t: Tensor, s: Tensor, stages: int) -> Tensor:
        return self.solver.regular(path, t, s, stages)


@dataclass(frozen=True)
class MidStep(SolverWrapper):
    """`solver`, begun inside a step: the first step of the grid is of first order and of one evaluation."""

    def rows(self, path: Path, grid: Tensor) -> Iterator[Row]:
        yield first_order(path, grid[0], grid[1])
        if len(grid) > 2:
            yield from self.solver.rows(path, grid[1:])
