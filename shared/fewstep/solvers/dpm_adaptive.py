"""DPM-Solver-12 and -23 (arXiv:2206.00927, appendix C): the step in lambda follows an embedded error estimate. k NFE per trial.

    lower, higher    DPM-Solver of order k - 1 and k, the first from evaluations of the second
    delta            max(atol, rtol max(|lower|, |previous lower|))
    E                norm of (higher - lower)/delta

A trial is accepted or repeated with another step as the step-size control says. Steps depend on the state, so this is no table:
it has a `sample` of its own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.paths import Path
from fewstep.sampling import Callback, Noise, anchored, draw
from fewstep.solvers.ancestral import downstep
from fewstep.solvers.base import Half, Row, State, advance, first_order
from fewstep.solvers.dpm_multistep import Rule
from fewstep.solvers.dpm_singlestep import inner_times, noisy_rows
from fewstep.solvers.step_control import ErrorControl, StepControl


class Adapted(NamedTuple):
    """The state at the end, (B, ...); evaluations made; the times that accepted steps reached; rejected trials;
    whether a callback stopped it."""

    x: Tensor
    nfe: int
    times: list[float]
    rejected: int
    stopped: bool


@dataclass(frozen=True)
class DPMAdaptive:
    """DPM-Solver-12 (k = 2) or -23 (k = 3) between two times.

    Args:
        k: the higher order, and the evaluations of a trial.
        uses, rule: see `DPMSinglestep`.
        control: `ErrorControl` (the paper) or `PIDControl` (k-diffusion).
        h_init: first step in lambda.  atol, rtol: absolute and relative tolerance of the state.
        t_err: the end is reached when the time is this near to it.
        eta, s_noise: accepted steps are `Renoised`; 0 is the ODE.
        ends: where lambda is infinite at an end (a = 0, s = 0), one first-order step leads to or from this finite value.
    """

    k: int = 3
    uses: Half = "eps"
    rule: Rule = "midpoint"
    control: StepControl = field(default_factory=ErrorControl)
    h_init: float = 0.05
    atol: float = 0.0078
    rtol: float = 0.05
    t_err: float = 1e-5
    eta: float = 0.0
    s_noise: float = 1.0
    ends: tuple[float, float] = (-6.0, 6.0)

    def __post_init__(self) -> None:
        if self.k not in (2, 3):
            raise ValueError(f"DPMAdaptive pairs orders k - 1 and k with k = 2 or 3, not {self.k}")

    def sample(
        self,
        denoise: Denoise,
        x: Tensor,
        path: Path,
        t: float,
        s: float,
        y: Tensor | None = None,
        generator: Noise | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> Adapted:
        """Integrate x: (B, ...) from time t to s, either direction; the other arguments are those of `sampling.sample`.

        Callbacks see every estimate and every accepted step; the number of steps in all is not known and given as 0.

        Raises:
            ValueError: where the state stops being finite.
        """
        run = _Run(self, denoise, x, path, y, generator, tuple(callbacks))
        start, end = self._finite(path, t), self._finite(path, s)
        stopped = run.first_order(t, start) or run.adapt(start, end) or run.first_order(end, s)
        return Adapted(run.x, run.nfe, run.times, run.rejected, stopped)

    def _finite(self, path: Path, t: float) -> float:
        lam = path.log_snr(_time(t))
        return t if lam.isfinite() else path.time_of_log_snr(lam.clamp(*self.ends)).item()

    def pair(self, path: Path, t: float, s: float, end: float) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
        """Rows of the higher and of the lower order from t to s; all but the last of the lower are the first of the higher."""
        start, stop = _time(t), _time(s)
        d = downstep(path, start, stop, self.eta, _time(end))
        inner = inner_times(path, start, d, [j / self.k for j in range(1, self.k)])
        higher, lower = (start, *inner, d), (start, *inner[:-1], d)
        high, low = (noisy_rows(path, v, stop, self.uses, self.rule, self.s_noise) for v in (higher, lower))
        return tuple(high), tuple(low)


class _Run:
    """A trajectory under way."""

    def __init__(
        self,
        solver: DPMAdaptive,
        denoise: Denoise,
        x: Tensor,
        path: Path,
        y: Tensor | None,
        generator: Noise | None,
        callbacks: tuple[Callback, ...],
    ) -> None:
        self.solver, self.denoise, self.x, self.path, self.y = solver, denoise, x, path, y
        self.generator, self.callbacks = generator, callbacks
        self.nfe, self.times, self.rejected = 0, list[float](), 0

    def first_order(self, t: float, s: float) -> bool:
        """One step from t to s, if they differ; whether a callback stops."""
        if t == s:
            return False
        row = first_order(self.path, _time(t), _time(s))
        x, _ = self.trial((row,), (row,))
        return self.accept(x, row)

    def adapt(self, t: float, end: float) -> bool:
        """From t to end, both of finite lambda; whether a callback stops."""
        solver, path = self.solver, self.path
        lam, lam_end = path.log_snr(_time(t)).item(), path.log_snr(_time(end)).item()
        sign, h, previous, memory = math.copysign(1.0, lam_end - lam), solver.h_init, self.x, ()
        order = 1.5 if solver.eta else solver.k
        while abs(t - end) > solver.t_err:
            left = abs(lam_end - lam)
            taken = min(h, left)
            s = end if taken == left else path.time_of_log_snr(_time(lam + sign * taken)).item()
            rows = solver.pair(path, t, s, end)
            higher, lower = self.trial(*rows)
            delta = (solver.rtol * torch.maximum(lower.abs(), previous.abs())).clamp(min=solver.atol)
            error = solver.control.error((higher - lower).abs() / delta)
            if not math.isfinite(error):
                raise ValueError(f"DPMAdaptive: the state is not finite after a step from t = {t:g} to {s:g}")
            accept, h, memory = solver.control.judge(error, h, taken, order, memory)
            if not accept:
                self.rejected += 1
                continue
            t, lam, previous = s, lam + sign * taken, lower
            if self.accept(higher, rows[0][-1]):
                return True
        return False

    def trial(self, high: tuple[Row, ...], low: tuple[Row, ...]) -> tuple[Tensor, Tensor]:
        """The ends of both without their noise."""
        if self.y is not None:
            high, low = anchored(high, self.path), anchored(low, self.path)
        state, keep, lower = State((self.x,)), (len(high), len(high)), self.x
        for i, row in enumerate(high):
            self.nfe += 1
            estimate = self.denoise(state.xs[0], row.t)
            for callback in self.callbacks:
                estimate = callback.on_estimate(state.xs[0], estimate, row)
            if i == len(low) - 1:
                lower = advance(state, estimate, low[i], None, keep, self.y).xs[0]
            state = advance(state, estimate, row, None, keep, self.y)
        return state.xs[0], lower

    def accept(self, x: Tensor, row: Row) -> bool:
        """Take the step that `row` ends; whether a callback stops."""
        noise = draw(x, row, self.generator)
        self.x = x if noise is None else x + row.noise * noise
        self.times.append(row.s)
        stops = [callback.on_step(self.x, len(self.times), 0, row) for callback in self.callbacks]
        return any(stops)


def _time(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)
