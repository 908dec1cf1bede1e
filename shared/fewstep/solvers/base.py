"""Solvers are tables of weights. One stage is a linear combination

    x_new = sum_j c_j X_j + sum_k w_k E_k + n xi

of the last states X_0 = x, X_1, ..., the last estimates E_0, E_1, ... (x0 or eps, as the solver `uses`) and fresh noise xi.
The weights depend on the path and the times alone. They are written once, elementwise in (t, s): the whole grid at a time in
float64 for sampling (the plan, plain floats), or per-sample times (B,) inside a distillation loss.

Solvers never see the anchor: states here are z = x - b y. They hold no state; `advance` is pure, so searches can fork it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.paths import Path, expand


class Stage(NamedTuple):
    """Weights of one network evaluation, as tensors elementwise in the times.

    t: where the denoiser is called; x: weights of the states, newest first; e: weights of the estimates, newest first;
    noise: weight of fresh noise, or None.
    """

    t: Tensor
    x: tuple[Tensor, ...]
    e: tuple[Tensor, ...]
    noise: Tensor | None = None


class Row(NamedTuple):
    """A stage as plain floats; `last` marks the end of a step, at time s."""

    t: float
    s: float
    x: tuple[float, ...]
    e: tuple[float, ...]
    noise: float
    last: bool


class State(NamedTuple):
    """Newest-first states and estimates; `xs[0]` is the current z = x - b y."""

    xs: tuple[Tensor, ...]
    es: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Solver(ABC):
    """order: of the deterministic limit, checked by measured convergence; past: earlier times that `stages` looks back at."""

    order: ClassVar[int]
    past: ClassVar[int] = 0
    uses: ClassVar[Literal["x0", "eps"]] = "x0"

    @abstractmethod
    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        """One step t -> s (s cleaner), elementwise; past[k] is the time k + 1 steps before t, NaN where there is none."""

    def plan(self, path: Path, grid: Tensor) -> tuple[Row, ...]:
        """The rows of a whole trajectory over grid: (n + 1,) decreasing times. One row is one network evaluation."""
        return _plan(self, path, tuple(grid.detach().double().tolist()))

    def step(
        self, path: Path, z: Tensor, estimate: Estimate, t: Tensor, s: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """One step from z at per-sample times t to s, both (B,), from one estimate: the teacher's ODE step of a loss.

        noise: standard normal, for stochastic solvers; without it the step is their mean.
        """
        never = [torch.full_like(t, math.nan, dtype=torch.float64)] * self.past
        stage, *more = self.stages(path, t.double(), s.double(), never)
        if more:
            raise ValueError(f"{type(self).__name__} needs {1 + len(more)} estimates a step; sample() runs it")
        x = expand(stage.x[0], z) * z + expand(stage.e[0], z) * (estimate.x0 if self.uses == "x0" else estimate.eps)
        return x if stage.noise is None or noise is None else x + expand(stage.noise, z) * noise


class LinearSolver(Solver):
    """A solver of one stage per step: write `weights`."""

    @abstractmethod
    def weights(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(c_x, (w_0, w_1, ...)) of the state and of the newest-first estimates, elementwise in t and s."""

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        c_x, weights = self.weights(path, t, s, past)
        return (Stage(t, (c_x,), weights),)


def advance(state: State, estimate: Tensor, row: Row, noise: Tensor | None, keep: tuple[int, int]) -> State:
    """The state after one row; `keep` = how many states and estimates later rows look at. Differentiable, no side effects."""
    xs, es = state.xs, (estimate, *state.es)
    if row.x[0] == 0.0:  # the last step to s = 0 keeps nothing of the state
        x, first = es[0] * row.e[0], 1
    else:
        x, first = xs[0] * row.x[0], 0
    for j in range(1, len(row.x)):
        x.add_(xs[j], alpha=row.x[j])
    for k in range(first, len(row.e)):
        x.add_(es[k], alpha=row.e[k])
    if noise is not None:
        x.add_(noise, alpha=row.noise)
    return State((x, *xs[: keep[0] - 1]), es[: keep[1] - 1])


def finite_or_zero(v: Tensor) -> Tensor:
    """NaN and infinities as 0: a multistep term that has no past, or whose step is infinite in lambda, drops out."""
    return torch.where(v.isfinite(), v, 0.0)


@lru_cache(maxsize=256)
def _plan(solver: Solver, path: Path, times: tuple[float, ...]) -> tuple[Row, ...]:
    """Solver.plan, remembered: solvers and paths are frozen, so the same grid has the same rows."""
    grid = torch.tensor(times, dtype=torch.float64)
    t, s = grid[:-1], grid[1:]
    past = [torch.cat([t.new_full((k,), math.nan), t])[: len(t)] for k in range(1, solver.past + 1)]
    stages = [_columns(stage, s) for stage in solver.stages(path, t, s, past)]
    rows = []
    for step in zip(*stages, strict=True):
        # A stage that changes nothing (a corrector where the end is singular) costs no evaluation.
        step = [r for r in step if any(r.e) or r.x[0] != 1.0 or any(r.x[1:])]
        rows += [r._replace(last=k == len(step) - 1, x=_strip(r.x), e=_strip(r.e)) for k, r in enumerate(step)]
    bad = next((r for r in rows if not all(math.isfinite(v) for v in (*r.x, *r.e, r.noise))), None)
    if bad is not None:
        raise ValueError(
            f"{type(solver).__name__} has no finite step from t = {bad.t:g} to {bad.s:g} on {path}: steps start where s(t) > 0"
        )
    return tuple(rows)


def _columns(stage: Stage, s: Tensor) -> list[Row]:
    """One row per step, from a stage of tensors (n,)."""

    def floats(v: Tensor) -> list[float]:
        return v.expand(len(s)).tolist()

    xs, es = zip(*map(floats, stage.x), strict=True), zip(*map(floats, stage.e), strict=True)
    noise = [0.0] * len(s) if stage.noise is None else floats(stage.noise)
    return [
        Row(t, end, x, e, m, True) for t, end, x, e, m in zip(floats(stage.t), s.tolist(), xs, es, noise, strict=True)
    ]


def _strip(w: tuple[float, ...]) -> tuple[float, ...]:
    """Without trailing zeros, so that rows without a past do not ask for one."""
    while len(w) > 1 and w[-1] == 0.0:
        w = w[:-1]
    return w
