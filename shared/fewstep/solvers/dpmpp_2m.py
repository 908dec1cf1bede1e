"""DPM-Solver++(2M) (arXiv:2211.01095): extrapolate x0 linearly in lambda = log(a/s). 1 NFE per step.

h = lambda_s - lambda_t,   r = h / (2 (lambda_t - lambda_past))
z_s = (s_s / s_t) z_t - a_s expm1(-h) ((1 + r) x0_t - r x0_past)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import LinearSolver, finite_or_zero


@dataclass(frozen=True)
class DPMpp2M(LinearSolver):
    """Second order multistep; first order at the start and where lambda is infinite."""

    order, past = 2, 1

    def weights(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        (at, _, st), (as_, _, ss) = path.schedule(t), path.schedule(s)
        lam_t, lam_s, lam_p = path.log_snr(t), path.log_snr(s), path.log_snr(past[0])
        # r is 0 without a past (NaN), after an infinite step (lambda_past = -inf) and on the last one (lambda_s = inf).
        r = finite_or_zero((lam_s - lam_t) / (2 * (lam_t - lam_p)))
        gain = as_ - at * ss / st  # = -a_s expm1(-h), finite at both ends
        return ss / st, (gain * (1 + r), -gain * r)
