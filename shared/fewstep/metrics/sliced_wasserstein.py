"""Sliced Wasserstein distance (Bonneel et al. 2015, J. Math. Imaging Vis. 51:22; Rabin et al. 2011).

    SW_p^p(P, Q) = mean over directions |theta| = 1 of W_p^p(theta.X, theta.Y)
    in 1-D         W_p^p = integral over q in [0, 1] of |F_x^-1(q) - F_y^-1(q)|^p dq

shapes: x (N, D), y (M, D);  result () in float64
"""

import torch
from torch import Tensor

from fewstep.metrics.energy_distance import MAX_ELEMENTS, check_samples


def sliced_wasserstein(
    x: Tensor, y: Tensor, projections: int = 256, p: float = 2, generator: torch.Generator | None = None
) -> Tensor:
    """SW_p of two samples over random directions, shape ().

    Exact when D = 1, for any N and M: both empirical quantile functions are steps, integrated between their jumps.
    Otherwise the directions are uniform on the sphere; the same generator state gives the same directions.
    Range: SW_p <= W_p; for a pure shift m, SW_2 = |m| / sqrt(D).
    """
    x, y = check_samples(x, y, smallest=1)
    if projections < 1 or p < 1:
        raise ValueError(f"projections is {projections} and p is {p}; allowed: both at least 1")
    n, dim = x.shape
    if dim == 1:
        return _wasserstein_power(x, y, p).mean() ** (1 / p)
    # Chunks of directions: the sorted projections, not the samples, would fill the memory.
    chunk = max(1, MAX_ELEMENTS // (n + len(y) + dim))
    device = x.device if generator is None else generator.device
    powers = []
    for start in range(0, projections, chunk):
        count = min(chunk, projections - start)
        theta = torch.randn(dim, count, generator=generator, device=device, dtype=torch.float64).to(x.device)
        theta = theta / theta.norm(dim=0)
        powers.append(_wasserstein_power(x @ theta, y @ theta, p))
    return torch.cat(powers).mean() ** (1 / p)


def _wasserstein_power(x: Tensor, y: Tensor, p: float) -> Tensor:
    """W_p^p of every column of x (N, K) and y (M, K), shape (K,)."""
    n, m = len(x), len(y)
    # Levels in units of 1/(NM): the quantile function of x jumps at multiples of M, that of y at multiples of N.
    jumps = torch.cat([torch.arange(0, n * m, m), torch.arange(0, n * m + 1, n)]).unique().to(x.device)
    level, weight = jumps[:-1], jumps.diff().to(x.dtype) / (n * m)
    gap = x.sort(dim=0).values[level // m] - y.sort(dim=0).values[level // n]
    return weight @ gap.abs().pow(p)
