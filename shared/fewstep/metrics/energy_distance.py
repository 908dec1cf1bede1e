"""Energy distance between two samples (Szekely & Rizzo 2013, Energy statistics, J. Stat. Plan. Inference 143).

    D^2(P, Q) = 2 E|X - Y| - E|X - X'| - E|Y - Y'|  >= 0,  0 exactly when P = Q

shapes: x (N, D), y (M, D), N and M >= 2;  result () in float64
"""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_ELEMENTS = 2**22
"""Numbers held at once by a chunk of pairs or projections: 32 MiB in float64."""


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """D^2 as an unbiased U-statistic, shape ().

        2/(NM) sum_ij |x_i - y_j| - 1/(N(N-1)) sum_{i != j} |x_i - x_j| - 1/(M(M-1)) sum_{i != j} |y_i - y_j|

    Pairs of a point with itself are left out, so equal laws give 0 on average and single values may be negative.
    The V-statistic of many packages counts them and is positive by O(1/N) even then. No square root is taken.
    """
    x, y = check_samples(x, y)
    within = mean_over_distinct_pairs(_identity, x) + mean_over_distinct_pairs(_identity, y)
    return 2 * mean_over_pairs(_identity, x, y) - within


def check_samples(x: Tensor, y: Tensor, smallest: int = 2) -> tuple[Tensor, Tensor]:
    """Both samples in float64 with the mean of x moved to 0, which every two-sample metric here ignores.

    Centring keeps |x - y|, evaluated as |x|^2 - 2 x.y + |y|^2, accurate when the samples lie far from the origin.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"samples have shapes {tuple(x.shape)} and {tuple(y.shape)}; allowed: (N, D) and (M, D)")
    if min(len(x), len(y)) < smallest or x.shape[1] < 1:
        raise ValueError(
            f"samples have shapes {tuple(x.shape)} and {tuple(y.shape)}; allowed: at least {smallest} rows, 1 column"
        )
    x, y = x.double(), y.double()
    centre = x.mean(0)
    return x - centre, y - centre


def mean_over_pairs(f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """1/(NM) sum_ij f(|x_i - y_j|), shape (), a block of rows at a time."""
    rows = max(1, MAX_ELEMENTS // len(y))
    total = torch.stack([f(torch.cdist(block, y)).sum() for block in x.split(rows)]).sum()
    return total / (len(x) * len(y))


def mean_over_distinct_pairs(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """1/(N(N-1)) sum_{i != j} f(|x_i - x_j|), shape (), a block of rows at a time."""
    n = len(x)
    rows = max(1, MAX_ELEMENTS // n)
    sums = []
    for start in range(0, n, rows):
        values = f(torch.cdist(x[start : start + rows], x))
        sums.append(values.sum() - values.diagonal(start).sum())
    return torch.stack(sums).sum() / (n * (n - 1))


def _identity(distance: Tensor) -> Tensor:
    return distance
