"""Maximum mean discrepancy with a mixture of Gaussian kernels (Gretton et al. 2012, JMLR 13:723).

    MMD^2(P, Q) = E k(X, X') + E k(Y, Y') - 2 E k(X, Y),   k(x, y) = mean over h of exp(-|x - y|^2 / (2 h^2))

shapes: x (N, D), y (M, D), N and M >= 2;  result () in float64, at most 2
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.metrics.energy_distance import check_samples, mean_over_distinct_pairs, mean_over_pairs

MEDIAN_ROWS = 1000
"""Rows of each sample that the median heuristic looks at."""


def mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float] | None = None) -> Tensor:
    """Squared MMD as an unbiased U-statistic (Gretton's eq. 3), shape (): equal laws give 0 on average, so single
    values may be negative.

    bandwidths: the h > 0 of the kernels. Default: 1/2, 1 and 2 times the median distance of the pooled samples,
    taken from evenly spaced rows when a sample has more than 1000. Values are comparable only at equal bandwidths.
    """
    x, y = check_samples(x, y)
    if bandwidths is None:
        scale = median_distance(x, y)
        bandwidths = (scale / 2, scale, 2 * scale)
    if not bandwidths or min(bandwidths) <= 0:
        raise ValueError(f"bandwidths are {tuple(bandwidths)}; allowed: one or more positive numbers")

    def kernel(distance: Tensor) -> Tensor:
        half_square = distance.square() / 2
        return torch.stack([(-half_square / h**2).exp() for h in bandwidths]).mean(0)

    within = mean_over_distinct_pairs(kernel, x) + mean_over_distinct_pairs(kernel, y)
    return within - 2 * mean_over_pairs(kernel, x, y)


def median_distance(x: Tensor, y: Tensor) -> float:
    """Median of |z_i - z_j|, i < j, over the pooled samples."""
    pooled = torch.cat([sample[:: -(-len(sample) // MEDIAN_ROWS)] for sample in (x, y)])
    median = torch.pdist(pooled).median().item()
    if not median > 0:
        raise ValueError(f"the median distance of the samples is {median}; pass positive bandwidths instead")
    return median
