"""Time grids: n steps -> n + 1 decreasing float64 times from the noisy to the clean end of a path.

Grids are small frozen objects, called as grid(path, n); they are saved with a student.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.paths import Path


@dataclass(frozen=True)
class Grid(ABC):
    """n steps -> (n + 1,) float64 times, strictly decreasing, first t_max and last the clean end."""

    @abstractmethod
    def __call__(self, path: Path, n: int) -> Tensor: ...


def between(path: Path, n: int, end: float | None) -> tuple[float, float]:
    """(t_max, clean end) of a grid of n >= 1 steps; `end` replaces the path's own clean end."""
    if n < 1:
        raise ValueError(f"a grid needs at least 1 step, not {n}")
    if end is not None and not path.t_min <= end < path.t_max:
        raise ValueError(f"a grid on {type(path).__name__} ends in [{path.t_min:g}, {path.t_max:g}), not at {end}")
    return path.t_max, path.t_min if end is None else end


def unit(n: int) -> Tensor:
    """0, 1/n, ..., 1 in float64."""
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Uniform(Grid):
    """Equal steps in t."""

    end: float | None = None

    def __call__(self, path: Path, n: int) -> Tensor:
        hi, lo = between(path, n, self.end)
        t = hi + unit(n) * (lo - hi)
        t[-1] = lo
        return t


@dataclass(frozen=True)
class Power(Grid):
    """Equal steps in t^(1/p): p = 2 is the quadratic grid, p = 7 is Karras' on the EDM path without its final zero."""

    p: float = 2.0
    end: float | None = None

    def __call__(self, path: Path, n: int) -> Tensor:
        hi, lo = between(path, n, self.end)
        if lo < 0:
            raise ValueError(f"the power grid needs times >= 0, {type(path).__name__} ends at {lo}")
        r = 1 / self.p
        t = (hi**r + unit(n) * (lo**r - hi**r)) ** self.p
        t[0], t[-1] = hi, lo
        return t


@dataclass(frozen=True)
class LogSNR(Grid):
    """Equal steps in lambda = log(a/s). Ends where lambda is infinite (a = 0 or s = 0) are reached from `start` and `end`.

    start, end: the finite noisy and clean times between which lambda is spaced evenly. Where they differ from the path's own ends
    the first or last step spans the difference.
    """

    start: float | None = None
    end: float | None = None

    def __call__(self, path: Path, n: int) -> Tensor:
        hi, lo = between(path, n, None)
        t_hi, t_lo = hi if self.start is None else self.start, lo if self.end is None else self.end
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
        t = path.time_of_log_snr(ends[0] + unit(inner) * (ends[1] - ends[0]))
        t[0], t[-1] = t_hi, t_lo
        own = [torch.tensor([v], dtype=torch.float64) for v in (hi, lo)]
        return torch.cat([own[0]] * (t_hi != hi) + [t] + [own[1]] * (t_lo != lo))


@dataclass(frozen=True)
class Karras(Grid):
    """EDM's grid (arXiv:2206.00364, eq. 5): n values (smax^(1/r) + i/(n-1) (smin^(1/r) - smax^(1/r)))^r of rho = s/a, then clean.

    sigma_min, sigma_max: range of rho; sigma_max None takes the path's own at t_max, which must then be finite.
    """

    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float | None = None

    def __call__(self, path: Path, n: int) -> Tensor:
        hi, lo = between(path, n, None)
        own = (-path.log_snr(torch.tensor(hi, dtype=torch.float64))).exp().item()
        smin, smax = self.sigma_min, own if self.sigma_max is None else self.sigma_max
        if not 0 < smin < smax < float("inf"):
            raise ValueError(f"Karras needs 0 < sigma_min < sigma_max < inf, got {smin} and {smax}: set them")
        r = 1 / self.rho
        steps = torch.linspace(0, 1, n, dtype=torch.float64)
        t = path.time_of_log_snr(-((smax**r + steps * (smin**r - smax**r)) ** self.rho).log())
        if self.sigma_max is None:
            t[0] = hi
        if not t[-1] > lo:
            raise ValueError(
                f"Karras: sigma_min {smin} is below what {type(path).__name__} reaches before its clean end"
            )
        return torch.cat([t, torch.tensor([lo], dtype=torch.float64)])


@dataclass(frozen=True)
class Shifted(Grid):
    """Flow-matching shift k (Stable Diffusion 3, arXiv:2403.03206): t' = k t / (1 + (k - 1) t) on uniform t in [0, 1]."""

    shift: float = 3.0

    def __call__(self, path: Path, n: int) -> Tensor:
        between(path, n, None)
        if (path.t_min, path.t_max) != (0.0, 1.0):
            raise ValueError(
                f"the shifted grid needs times in [0, 1], {type(path).__name__} has [{path.t_min}, {path.t_max}]"
            )
        t = 1 - unit(n)
        return self.shift * t / (1 + (self.shift - 1) * t)


@dataclass(frozen=True)
class Spaced(Grid):
    """n of the N indices of a discrete process (DDPM tables, ResShift), then the clean end -1.

    include_end  round(linspace(0, N-1, n))              first and last index kept
    trailing     round(N - i N/n) - 1                    last index kept (diffusers)
    leading      i * (N // n) + offset                   (diffusers)
    floor        floor(N i / n)                          ResShift's official respacing: does not start at the last index
    """

    spacing: Literal["include_end", "trailing", "leading", "floor"] = "include_end"
    offset: int = 0

    def __call__(self, path: Path, n: int) -> Tensor:
        hi, lo = between(path, n, None)
        if lo != -1.0:
            raise ValueError(
                f"{self.spacing} spacing needs a path of step indices, {type(path).__name__} has times [{lo}, {hi}]"
            )
        total = int(hi) + 1
        if n > total:
            raise ValueError(f"{n} steps asked of a process with {total} indices")
        i = torch.arange(n, dtype=torch.float64)
        index = {
            "include_end": lambda: (i * ((total - 1) / max(n - 1, 1))).round() if n > 1 else i + total - 1,
            "trailing": lambda: (total - i.flip(0) * total / n).round() - 1,
            "leading": lambda: i * (total // n) + self.offset,
            "floor": lambda: (total * i / n).floor(),
        }[self.spacing]()
        if index[-1] > hi:
            raise ValueError(
                f"{self.spacing} spacing with offset {self.offset} asks for index {index[-1]:g}, the last one is {hi:g}"
            )
        return torch.cat([index.flip(0), torch.tensor([-1.0], dtype=torch.float64)])


@dataclass(frozen=True)
class Explicit(Grid):
    """Given times, decreasing; n must be their number minus one."""

    times: tuple[float, ...] = ()

    def __call__(self, path: Path, n: int) -> Tensor:
        t = torch.tensor(tuple(self.times), dtype=torch.float64)
        if len(t) != n + 1 or n < 1 or not (t[:-1] > t[1:]).all():
            raise ValueError(f"explicit grid: {n} steps need {n + 1} decreasing times, got {list(self.times)}")
        return t
