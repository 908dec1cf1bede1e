"""Solvers are tables of weights. One row is a linear combination

    x_new = sum_j c_j X_j + sum_k w_k E_k + n xi + w_y y + bias

of the last states X_0 = x, X_1, ..., the last estimates E_0, E_1, ... (x0 or eps, as the row `uses`) and fresh noise xi.
The weights depend on the path and the times alone. They are written once, elementwise in (t, s): the whole grid at a time in
float64 for sampling (the plan, plain floats), or per-sample times (B,) inside a distillation loss.

Solvers never see the anchor: states here are z = x - b y, and w_y is 0 but for discretisations that are not exact in y.
They hold no state; `advance` is pure, so searches can fork it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.paths import Path, expand

# Which half of an estimate.
Half = Literal["x0", "eps"]
# A plain number, or one number per coordinate (broadcast against the state without its batch).
Weight = float | Tensor


class Stage(NamedTuple):
    """Weights of one row, as tensors elementwise in the times.

    t: time of the newest state, where the denoiser is called; x: weights of the states, newest first; e: weights of the
    estimates, newest first, or () for a row without an evaluation; noise: weight of fresh noise; y: weight of the anchor.
    """

    t: Tensor
    x: tuple[Tensor, ...]
    e: tuple[Tensor, ...]
    noise: Tensor | None = None
    y: Tensor | None = None


class Row(NamedTuple):
    """A stage as plain numbers.

    t: time of the newest state, where the denoiser is called; s: the end of the step; last: this row reaches it;
    e = () is a row without an evaluation.
    """

    t: float
    s: float
    x: tuple[Weight, ...]
    e: tuple[Weight, ...]
    noise: Weight = 0.0
    last: bool = True
    uses: Half = "x0"
    y: Weight = 0.0
    bias: Weight = 0.0


class State(NamedTuple):
    """Newest-first states and estimates; `xs[0]` is the current one. In folded loops es are raw network outputs."""

    xs: tuple[Tensor, ...]
    es: tuple[Estimate | Tensor, ...] = ()


class Solver(ABC):
    """Solvers are frozen dataclasses: their fields are their configuration.

    order: measured, of the flow's end point or (stochastic) of its mean and variance, once a multistep start-up is fine enough;
    past: earlier times that `stages` looks back at; uses: the half of the estimates that the weights multiply.
    """

    order: ClassVar[int]
    past: ClassVar[int] = 0
    uses: ClassVar[Half] = "x0"

    @abstractmethod
    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        """One step t -> s (s cleaner), elementwise; past[k] is the time k + 1 steps before t, NaN where there is none."""

    def lookback(self, n: int) -> Sequence[int]:
        """How many past times each of n steps may look at; fewer near the end lowers the order there."""
        return [self.past] * n

    def rows(self, path: Path, grid: Tensor) -> Iterable[Row]:
        """The rows over grid: (n + 1,) float64 times, by `stages`; solvers whose steps differ write this instead.

        Where `regular` says no, the step is the first-order one.
        """
        t, s = grid[:-1], grid[1:]
        allowed = torch.tensor(self.lookback(len(t)))
        past = [torch.cat([t.new_full((k,), math.nan), t])[: len(t)] for k in range(1, self.past + 1)]
        past = [torch.where(allowed >= k, p, math.nan) for k, p in enumerate(past, 1)]
        stages = [_columns(stage, s, self.uses) for stage in self.stages(path, t, s, past)]
        regular = self.regular(path, t, s, len(stages)).tolist()
        for i, step in enumerate(zip(*stages, strict=True)):
            if regular[i]:
                yield from (r._replace(last=k == len(step) - 1) for k, r in enumerate(step))
            else:
                yield first_order(path, t[i], s[i])

    def regular(self, path: Path, t: Tensor, s: Tensor, stages: int) -> Tensor:
        """Where the step t -> s can be taken as written, elementwise.

        Several evaluations need finite lambda at both ends; one in eps needs a_t > 0 (there x0 is not a function of eps), one in
        x0 needs s_t > 0 (bridges start without noise).
        """
        (at, _, st), (as_, _, ss) = path.schedule(t), path.schedule(s)
        if stages == 1:
            return (at if self.uses == "eps" else st) != 0
        return (at != 0) & (as_ != 0) & (ss != 0)

    def plan(self, path: Path, grid: Tensor) -> tuple[Row, ...]:
        """The rows of a whole trajectory over grid: (n + 1,) decreasing times. A row with weights e is one network evaluation.

        Raises:
            ValueError: where a weight is not finite.
        """
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
        if self.uses == "eps":  # out of a_t = 0, where x0 is no function of eps
            (at, _, st), (as_, _, ss) = path.schedule(t.double()), path.schedule(s.double())
            first = expand(ss / st, z) * z + expand(as_ - at * ss / st, z) * estimate.x0
            x = torch.where(expand(at, z) == 0, first, x)
        return x if stage.noise is None or noise is None else x + expand(stage.noise, z) * noise


class LinearSolver(Solver):
    """A solver of one stage per step: write `weights`."""

    @abstractmethod
    def weights(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(c_x, (w_0, w_1, ...)) of the state and of the newest-first estimates, elementwise in t and s."""

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        c_x, weights = self.weights(path, t, s, past)
        return (Stage(t, (c_x,), weights),)


def advance(
    state: State,
    estimate: Estimate | Tensor | None,
    row: Row,
    noise: Tensor | None,
    keep: tuple[int, int],
    y: Tensor | None = None,
) -> State:
    """The state after one row; `keep` = how many states and estimates later rows look at. Differentiable, no side effects."""
    _, _, c, weights, to_noise, _, uses, to_y, bias = row
    xs, es = state.xs, state.es if estimate is None else (estimate, *state.es)
    x = None
    for v, w in zip(xs, c):  # noqa: B905 (a keyword costs, here in the loop of every sample)
        if not isinstance(w, float):
            x = _weigh(x, v, w)
        elif w != 0.0:
            x = v * w if x is None else x.add_(v, alpha=w)
    for v, w in zip(es, weights):  # noqa: B905
        if isinstance(v, Estimate):
            v = v.x0 if uses == "x0" else v.eps
        if not isinstance(w, float):
            x = _weigh(x, v, w)
        elif w != 0.0:
            x = v * w if x is None else x.add_(v, alpha=w)
    x = torch.zeros_like(xs[0]) if x is None else x
    if noise is not None:
        x = _weigh(x, noise, to_noise)
    if y is not None and (not isinstance(to_y, float) or to_y != 0.0):
        x = _weigh(x, y, to_y)
    if not isinstance(bias, float) or bias != 0.0:
        x = x + (bias.to(x) if isinstance(bias, Tensor) else bias)
    return State((x, *xs[: keep[0] - 1]), es[: keep[1] - 1])


def reach(rows: Sequence[Row]) -> tuple[int, int]:
    """(states, estimates) that a driver of these rows keeps: the `keep` of `advance`."""
    return max(len(r.x) for r in rows), max(1, *(len(r.e) for r in rows))


def _weigh(x: Tensor | None, v: Tensor, w: Weight) -> Tensor:
    """x + w v, in place where there is an x."""
    w = w.to(v) if isinstance(w, Tensor) else w
    if x is None:
        return v * w
    return x.addcmul_(v, w) if isinstance(w, Tensor) else x.add_(v, alpha=w)


def first_order(path: Path, t: Tensor, s: Tensor) -> Row:
    """DDIM's step between two times (0-dim) as a row, finite at both singular ends: z_s = (s_s/s_t) z + (a_s - a_t s_s/s_t) x0."""
    c_x, gain = data_form(path, t, s)
    return Row(t.item(), s.item(), (c_x.item(),), (gain.item(),))


def data_form(path: Path, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(s_s/s_t, a_s - a_t s_s/s_t), the first-order weights of state and x0, elementwise.

    Where a_t = s_t = 0 they are their limits (0, a_s): bridges start at x = y with z = 0, and no noise enters an ODE step.
    """
    (at, _, st), (as_, _, ss) = path.schedule(t), path.schedule(s)
    c_x = torch.where((at == 0) & (st == 0), 0.0, ss / st)
    return c_x, as_ - at * c_x


def finite_or_zero(v: Tensor) -> Tensor:
    """NaN and infinities as 0: a multistep term that has no past, or whose step is infinite in lambda, drops out."""
    return torch.where(v.isfinite(), v, 0.0)


@lru_cache(maxsize=256)
def _plan(solver: Solver, path: Path, times: tuple[float, ...]) -> tuple[Row, ...]:
    """Solver.plan, remembered: solvers and paths are frozen, so the same grid has the same rows."""
    rows = tuple(
        r._replace(x=_strip(r.x), e=_strip(r.e)) for r in solver.rows(path, torch.tensor(times, dtype=torch.float64))
    )
    bad = next((r for r in rows if not all(map(_finite, (*r.x, *r.e, r.noise, r.y, r.bias)))), None)
    if bad is not None:
        raise ValueError(
            f"{type(solver).__name__} has no finite step from t = {bad.t:g} to {bad.s:g} on {path}: steps start where s(t) > 0"
        )
    return rows


def _finite(w: Weight) -> bool:
    return bool(w.isfinite().all()) if isinstance(w, Tensor) else math.isfinite(w)


def _columns(stage: Stage, s: Tensor, uses: Half) -> list[Row]:
    """One row per step, from a stage of tensors (n,)."""

    def floats(v: Tensor | None) -> list[float]:
        return [0.0] * len(s) if v is None else v.expand(len(s)).tolist()

    xs = list(zip(*map(floats, stage.x), strict=True))
    es = list(zip(*map(floats, stage.e), strict=True)) or [()] * len(s)
    columns = zip(floats(stage.t), s.tolist(), xs, es, floats(stage.noise), floats(stage.y), strict=True)
    return [Row(t, end, x, e, noise, uses=uses, y=y) for t, end, x, e, noise, y in columns]


def _strip(w: tuple[Weight, ...]) -> tuple[Weight, ...]:
    """Without trailing zeros, so that rows without a past do not ask for one."""
    while len(w) > 1 and not isinstance(w[-1], Tensor) and w[-1] == 0.0:
        w = w[:-1]
    return w
