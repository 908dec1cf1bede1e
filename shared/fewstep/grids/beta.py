"""Beta sampling (arXiv:2407.12173): more steps near both ends, at the quantiles of a Beta distribution."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.grids.base import Grid, between, unit
from fewstep.grids.levels import of_levels
from fewstep.paths import Path


@dataclass(frozen=True)
class Beta(Grid):
    """Quantiles Q of Beta(alpha, beta) at 1, 1 - 1/n, ..., 0.

    over "t": times end + Q (t_max - end), the paper's.
    over "sigma": n levels smin + Q (smax - smin) of s/a, then clean, as diffusers has it; sigma_max None is the path's.
    end: clean end of the times, the path's own where None (over "t" only).
    """

    alpha: float = 0.6
    beta: float = 0.6
    over: Literal["t", "sigma"] = "t"
    end: float | None = None
    sigma_min: float = 0.03
    sigma_max: float | None = None

    def __call__(self, path: Path, n: int) -> Tensor:
        if self.over == "t":
            hi, lo = between(path, n, self.end)
            t = lo + beta_quantile(1 - unit(n), self.alpha, self.beta) * (hi - lo)
            t[0] = hi
            return t

        def values(smax: float, smin: float, u: Tensor) -> Tensor:
            return smin + beta_quantile(1 - u, self.alpha, self.beta) * (smax - smin)

        return of_levels("Beta", path, n, self.sigma_min, self.sigma_max, True, values)


def beta_quantile(u: Tensor, alpha: float, beta: float) -> Tensor:
    """Quantiles of Beta(alpha, beta), elementwise in float64, u in [0, 1]; bisected on their side of x = 1/2."""
    total = math.gamma(alpha) * math.gamma(beta) / math.gamma(alpha + beta)
    low = u <= _below_half(torch.tensor(0.5, dtype=torch.float64), alpha, beta) / total
    return torch.where(low, _root(u * total, alpha, beta), 1 - _root((1 - u) * total, beta, alpha))


def _root(target: Tensor, a: float, b: float) -> Tensor:
    """x <= 1/2 where the integral of x^(a-1) (1-x)^(b-1) is `target`; bisected in x^a, where it is smooth at 0."""
    lo, hi = torch.zeros_like(target), torch.full_like(target, 0.5**a)
    for _ in range(60):
        mid = (lo + hi) / 2
        small = _below_half(mid ** (1 / a), a, b) < target
        lo, hi = torch.where(small, mid, lo), torch.where(small, hi, mid)
    return lo ** (1 / a)


def _below_half(x: Tensor, a: float, b: float) -> Tensor:
    """INT_0^x v^(a-1) (1-v)^(b-1) dv for x <= 1/2, by the binomial series, whose terms fall faster than 2^-k."""
    k = torch.arange(1, 60, dtype=torch.float64)
    coefficient = torch.cat([k.new_ones(1), ((k - b) / k).cumprod(0)]) / (a + torch.arange(60, dtype=torch.float64))
    return x**a * (x[..., None] ** torch.arange(60) * coefficient).sum(-1)
