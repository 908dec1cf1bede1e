"""Grids in lambda = log(a/s)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.grids.base import Grid, between, unit
from fewstep.grids.uniform import Uniform
from fewstep.paths import Path


@dataclass(frozen=True)
class LogSNR(Grid):
    """Equal steps in lambda = log(a/s). Ends where lambda is infinite (a = 0 or s = 0) are reached from start and end.

    start, end: the finite noisy and clean times between which lambda is spaced evenly. Where they differ from the
    path's own ends the first or last step spans the difference. diffusers' "lu lambdas" are this grid between the last
    and the first index.
    """

    start: float | None = None
    end: float | None = None

    def __call__(self, path: Path, n: int) -> Tensor:
        return spanned(path, n, self.start, self.end, unit)


def spanned(path: Path, n: int, start: float | None, end: float | None, fractions: Callable[[int], Tensor]) -> Tensor:
    """Times at fractions(m), (m + 1,) from 0 to 1, of lambda from start to end, and a step to path ends beyond."""
    hi, lo = between(path, n, None)
    t_hi, t_lo = hi if start is None else start, lo if end is None else end
    if not lo <= t_lo < t_hi <= hi:
        raise ValueError(f"LogSNR needs {lo:g} <= end < start <= {hi:g}, got start {t_hi} and end {t_lo}")
    inner = n - (t_hi != hi) - (t_lo != lo)
    if inner < 1:
        return Uniform()(path, n)
    ends = path.log_snr(torch.tensor([t_hi, t_lo], dtype=torch.float64))
    if not ends.isfinite().all():
        raise ValueError(
            f"lambda is infinite at t = {t_hi if ends[0].isinf() else t_lo}: give LogSNR a finite start or end"
        )
    t = path.time_of_log_snr(ends[0] + fractions(inner) * (ends[1] - ends[0]))
    t[0], t[-1] = t_hi, t_lo
    own = [torch.tensor([v], dtype=torch.float64) for v in (hi, lo)]
    return torch.cat([own[0]] * (t_hi != hi) + [t] + [own[1]] * (t_lo != lo))
