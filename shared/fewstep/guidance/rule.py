"""Guidance: the estimates of several branches of one state, made one by a rule.

Branch 0 is the conditional model, branch 1 the unconditional (or negative, or weaker) one, further ones as the rule
says. A rule asks for the branches that it needs at this state and time; what it does not ask for is not evaluated.

Rules nest: Interval(Rescale(CFGRule(7.5)), 0.2, 0.8).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce

import torch
from torch import Tensor

from fewstep.denoiser import Denoise, tabulate
from fewstep.estimate import Estimate
from fewstep.paths import Path
from fewstep.prediction import X0, Eps, Prediction


class Rule(ABC):
    """How branches become one estimate; frozen dataclasses, whose fields are their configuration."""

    @abstractmethod
    def begin(self) -> "Mix":
        """The rule for one trajectory: what it remembers from step to step starts empty here."""


class Mixed:
    """Bound branches under a rule: a callable (x, t) -> Estimate.

    A trajectory, and with it the memory of a rule, begins when the object is made and at each `prepare`, which `sample`
    calls once. Rules with a memory count every call as a step, so they belong to solvers of one evaluation per step.

    Args:
        branches: bound denoisers, the conditional one first. A call counts their `cost`, 1 where they do not say.
        rule: how they are mixed.
        path: their path; rules that are not linear in the branches need it.
        stacked: given the numbers of several branches, one callable for their stacked batches.
    """

    def __init__(
        self,
        branches: Sequence[Denoise],
        rule: Rule,
        path: Path | None = None,
        stacked: Callable[[tuple[int, ...]], Denoise] | None = None,
    ) -> None:
        self.branches, self.rule, self.path, self.stacked = tuple(branches), rule, path, stacked
        self.begin()

    def begin(self) -> None:
        """Start a trajectory: `calls` and `nfe` count its steps and its evaluations of a whole batch by one branch."""
        self.mix, self.calls, self.nfe = self.rule.begin(), 0, 0.0

    @property
    def saved(self) -> float:
        """Evaluations not made so far, out of one per branch and step."""
        return len(self.branches) * self.calls - self.nfe

    def prepare(self, times: tuple[float, ...], x: Tensor) -> None:
        """Begin a trajectory over these times from states like x."""
        for branch in self.branches:
            forward_prepare(branch, times, x)
        self.begin()

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        self.calls += 1
        return self.mix(Branches(self, x, t))

    def evaluate(self, which: tuple[int, ...], x: Tensor, t: float | Tensor) -> Sequence[Estimate]:
        """The estimates of these branches."""
        self.nfe += sum(getattr(self.branches[i], "cost", 1) for i in which)
        if self.stacked is None or len(which) == 1:
            return [self.branches[i](x, t) for i in which]
        n = len(which)
        times = t.repeat(n) if isinstance(t, Tensor) else t
        both = self.stacked(which)(x.repeat(n, *[1] * (x.ndim - 1)), times)
        return [_chunk(both, k * len(x), len(x)) for k in range(n)]

    def evaluate_part(self, i: int, rows: Tensor, x: Tensor, t: float | Tensor) -> Estimate:
        """The estimate of branch i for some rows of the batch, (len(rows), ...)."""
        self.nfe += len(rows) / len(x)
        branch = self.branches[i]
        part: Denoise = getattr(branch, "part", lambda rows: branch)(rows)
        return part(x[rows], t[rows] if isinstance(t, Tensor) else t)


class Branches:
    """The branches at one state x: (B, ...) and time t, evaluated when asked for and at most once."""

    __slots__ = ("_seen", "mixed", "t", "x")

    def __init__(self, mixed: Mixed, x: Tensor, t: float | Tensor) -> None:
        self.mixed, self.x, self.t = mixed, x, t
        self._seen: dict[int, Estimate] = {}

    def __call__(self, *which: int) -> tuple[Estimate, ...]:
        """The estimates of these branches; ask at once for those that can share one call."""
        new = tuple(i for i in which if i not in self._seen)
        if new:
            self._seen.update(zip(new, self.mixed.evaluate(new, self.x, self.t), strict=True))
        return tuple(self._seen[i] for i in which)

    def part(self, i: int, rows: Tensor) -> Estimate:
        """Branch i for some rows of the batch alone."""
        return self.mixed.evaluate_part(i, rows, self.x, self.t)

    def output(self, estimate: Estimate, prediction: Prediction) -> Tensor:
        """p x0 + q eps: what a network of this prediction would have said, less its anchor term."""
        if isinstance(prediction, X0 | Eps):  # the other half may not even be finite
            return estimate.x0 if isinstance(prediction, X0) else estimate.eps
        p, q = self._numbers(prediction)[:2]
        return p * estimate.x0 + q * estimate.eps

    def moved(self, estimate: Estimate, change: Tensor, prediction: Prediction) -> Estimate:
        """The estimate of the same state whose output differs by `change`: x0 and eps follow."""
        to_x0, to_eps = self._numbers(prediction)[2:]
        return Estimate(lambda: estimate.x0 + to_x0 * change, lambda: estimate.eps + to_eps * change)

    def _numbers(self, prediction: Prediction) -> tuple[float | Tensor, ...]:
        """(p, q) of the prediction's row and the rates of (x0, eps) in its output, at this time."""
        path = self.mixed.path
        if path is None:
            raise ValueError(f"{type(self.mixed.rule).__name__} reads outputs of a network: give Mixed the path")
        if not isinstance(self.t, Tensor):
            return _numbers(path, prediction, self.t)
        c = path.coeffs(self.t, self.x)
        k = prediction.affine(c)
        return (*prediction.row(c)[:2], k.x0_out, k.eps_out)


Mix = Callable[[Branches], Estimate]


def weighted(estimates: Sequence[Estimate], weights: Sequence[float | Tensor]) -> Estimate:
    """sum_i w_i E_i, on both halves: weights that add up to 1 give an estimate of the same state."""
    terms = [(w, e) for w, e in zip(weights, estimates, strict=True) if isinstance(w, Tensor) or w != 0.0]
    return Estimate(
        lambda: reduce(torch.add, (w * e.x0 for w, e in terms)),
        lambda: reduce(torch.add, (w * e.eps for w, e in terms)),
    )


def forward_prepare(denoise: Denoise, times: tuple[float, ...], x: Tensor) -> None:
    """Pass the grid on to what is wrapped, where that listens."""
    if hasattr(denoise, "prepare"):
        denoise.prepare(times, x)  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]


@lru_cache(maxsize=1024)
def _numbers(path: Path, prediction: Prediction, t: float) -> tuple[float, ...]:
    time = torch.tensor([t], dtype=torch.float64)
    p, q = (v.item() for v in prediction.row(path.coeffs(time, time))[:2])
    scalars = tabulate(path, prediction, (t,))[t]
    return p, q, scalars.x0[1], scalars.eps[1]


def _chunk(estimate: Estimate, start: int, length: int) -> Estimate:
    return Estimate(lambda: estimate.x0.narrow(0, start, length), lambda: estimate.eps.narrow(0, start, length))
