"""diffusers' time grids as fewstep grids: spacings of an index table, respaced sigmas, flow sigmas with their shifts.

Unlike other grids they may end on a repeated time, where diffusers spends its last evaluation on a step of length zero.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.grids import Grid
from fewstep.paths import Path

Spacing = Literal["linspace", "leading", "trailing"]
Kind = Literal["karras", "exponential", "beta"]


def respace(kind: Kind, high: float, low: float, n: int, rho: float = 7.0) -> Tensor:
    """n values from high to low: even in the rho-th root (arXiv:2206.00364), in the logarithm, or at quantiles of
    Beta(0.6, 0.6) (arXiv:2407.12173)."""
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    if kind == "karras":
        return (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    if kind == "exponential":
        return (math.log(high) + u * (math.log(low) - math.log(high))).exp()
    return low + beta_quantile(1 - u, 0.6) * (high - low)


def beta_quantile(u: Tensor, alpha: float) -> Tensor:
    """Quantiles of the symmetric Beta(alpha, alpha), elementwise in float64, u in [0, 1].

    By bisection in w = x^alpha, x <= 1/2, where the distribution function is the integral of the smooth
    (1 - w^(1/alpha))^(alpha - 1).
    """
    total = math.gamma(alpha) ** 2 / math.gamma(2 * alpha)
    target = torch.minimum(u, 1 - u) * total * alpha
    lo, hi = torch.zeros_like(u), torch.full_like(u, 0.5**alpha)
    for _ in range(60):
        mid = (lo + hi) / 2
        below = _power_series(mid, alpha) < target
        lo, hi = torch.where(below, mid, lo), torch.where(below, hi, mid)
    x = ((lo + hi) / 2) ** (1 / alpha)
    return torch.where(u <= 0.5, x, 1 - x)


def _power_series(w: Tensor, alpha: float) -> Tensor:
    """Integral of (1 - v^(1/alpha))^(alpha - 1) over [0, w] by its binomial series, whose k-th term is below 2^-k."""
    x, term, total = w ** (1 / alpha), torch.ones_like(w), torch.zeros_like(w)
    for k in range(60):
        total = total + term * alpha / (alpha + k)
        term = term * x * (k + 1 - alpha) / (k + 1)
    return w * total


@dataclass(frozen=True)
class IndexSpacing(Grid):
    """`timestep_spacing` on a path of indices.

    Args:
        spacing: linspace even between both ends; leading multiples of N // n plus `offset`; trailing back from N in
            steps of N/n.
        offset: `steps_offset` of leading.
        extra: lay out n + 1 points and drop the last, as the DPM-Solver family does (not for trailing).
        whole: round linspace to integers.
        end: the last time: -1 clean, 0 the first index of the table (`sigma_min`, `set_alpha_to_one=False`).
        top: number of indices used, all where None; fewer keep away from lambda below `lambda_min_clipped`.
    """

    spacing: Spacing = "leading"
    offset: int = 0
    extra: bool = False
    whole: bool = True
    end: float = -1.0
    top: int | None = None

    def __post_init__(self) -> None:
        if self.spacing not in ("linspace", "leading", "trailing"):
            raise ValueError(f"timestep_spacing is linspace, leading or trailing, not {self.spacing!r}")

    def __call__(self, path: Path, n: int) -> Tensor:
        total = int(path.t_max) + 1
        if not 1 <= n <= total:
            raise ValueError(f"{n} steps asked of a table with {total} indices")
        top, m = self.top or total, n + self.extra
        if self.spacing == "linspace":
            t = torch.linspace(0, top - 1, m, dtype=torch.float64)
            t = t.round() if self.whole else t
            t = t[m - n :].flip(0)
        elif self.spacing == "leading":
            t = (torch.arange(m, dtype=torch.float64) * (top // m))[m - n :].flip(0) + self.offset
        else:
            t = torch.arange(top, 0, -total / n, dtype=torch.float64).round() - 1
        return torch.cat([t, t.new_tensor([self.end])])


@dataclass(frozen=True)
class Distilled(Grid):
    """Indices of LCM and TCD: n of the `original` ones that the student was trained at, (N // original) k - 1, k = 1 ..
    original.
    """

    original: int = 50
    end: float = -1.0

    def __call__(self, path: Path, n: int) -> Tensor:
        if not 1 <= n <= self.original:
            raise ValueError(f"{n} steps asked of a student trained at {self.original} indices")
        total = int(path.t_max) + 1
        trained = torch.arange(self.original, 0, -1, dtype=torch.float64) * (total // self.original) - 1
        index = (torch.arange(n, dtype=torch.float64) * (self.original / n)).floor().long()
        return torch.cat([trained[index], trained.new_tensor([self.end])])


@dataclass(frozen=True)
class SigmaSpacing(Grid):
    """Respaced sigma = s/a of any path.

    Args:
        kind, rho: see `respace`; diffusers' "lu lambdas" are exponential.
        high, low: range of sigma; where None, that of the times of `within`.
        within: index spacing whose first and last time bound sigma.
        end: the last level: clean, the given sigma, or the last one once more.
    """

    kind: Kind = "karras"
    high: float | None = None
    low: float | None = None
    within: IndexSpacing | None = None
    end: float | Literal["clean", "repeat"] = "clean"
    rho: float = 7.0

    def __call__(self, path: Path, n: int) -> Tensor:
        if n < 1:
            raise ValueError(f"a grid needs at least 1 step, not {n}")
        high, low = self._range(path, n)
        sigmas = respace(self.kind, high, low, n, self.rho)
        if self.end == "clean":
            return torch.cat([path.time_of_log_snr(-sigmas.log()), sigmas.new_tensor([path.t_min])])
        last = sigmas[-1:] if self.end == "repeat" else sigmas.new_tensor([self.end])
        return path.time_of_log_snr(-torch.cat([sigmas, last]).log())

    def _range(self, path: Path, n: int) -> tuple[float, float]:
        high, low = self.high, self.low
        if high is None or low is None:
            if self.within is None:
                raise ValueError("SigmaSpacing needs high and low, or an index spacing to take them from")
            t = self.within(path, n)[:-1]
            sigma = (-path.log_snr(t)).exp()
            high, low = sigma[0].item() if high is None else high, sigma[-1].item() if low is None else low
        return high, low


@dataclass(frozen=True)
class FlowSpacing(Grid):
    """Flow sigmas, which are the times of a rectified flow: t' = k t / (1 + (k - 1) t) on even t, k = `shift`.

    Args:
        first, last: ends of the even spacing.
        extra: lay out n + 1 points and drop the last.
        shift: k. With `dynamic` the pipeline gives mu, and k = e^mu (exponential) or mu (linear).
        terminal: stretch so that the last time becomes this (`shift_terminal`).
        kind: respace between the resulting ends.
        below_one: a first time of 1 becomes 1 - below_one (UniPC takes 1e-6 where lambda is needed).
        end: the last time, or the last one once more.
    """

    first: float = 1.0
    last: float = 0.001
    extra: bool = False
    shift: float = 1.0
    dynamic: Literal["exponential", "linear"] | None = None
    terminal: float | None = None
    kind: Kind | None = None
    below_one: float = 0.0
    end: float | Literal["repeat"] = 0.0

    def __call__(self, path: Path, n: int) -> Tensor:
        if n < 1:
            raise ValueError(f"a grid needs at least 1 step, not {n}")
        return self.given(torch.linspace(self.first, self.last, n + self.extra, dtype=torch.float64)[:n])

    def given(self, sigmas: Tensor) -> Tensor:
        """The grid of unshifted sigmas (n,)."""
        t = self.shift * sigmas / (1 + (self.shift - 1) * sigmas)
        if self.terminal:
            t = 1 - (1 - t) * (1 - self.terminal) / (1 - t[-1])
        if self.kind is not None:
            t = respace(self.kind, t[0].item(), t[-1].item(), len(t))
        if self.below_one and abs(t[0].item() - 1) < self.below_one:
            t = torch.cat([t[:1] - self.below_one, t[1:]])
        return torch.cat([t, t[-1:] if self.end == "repeat" else t.new_tensor([self.end])])

    def shifted(self, mu: float) -> "FlowSpacing":
        """This grid with the shift of a dynamic mu."""
        return replace(self, shift=math.exp(mu) if self.dynamic == "exponential" else mu)
