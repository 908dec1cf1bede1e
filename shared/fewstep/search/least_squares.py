"""Ordinary least squares over batches that need not be in memory together.

A QR decomposition of every batch leaves a triangle with the same inner products; stacking triangles and decomposing again gives the
triangle of all rows. Unlike the normal equations this loses no digits.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def triangle(batches: Iterable[Tensor]) -> Tensor:
    """R with R^T R = sum of M^T M over the batches M: (rows, p); R is (at most p, p), float64 on the CPU."""
    r: Tensor | None = None
    for m in batches:
        m = m.detach().double().cpu()
        r = torch.linalg.qr(m if r is None else torch.cat([r, m]), mode="r").R
    if r is None:
        raise ValueError("least squares of no batches")
    return r


def resolution(dtype: torch.dtype) -> float:
    """Singular values below this part of the largest are rounding of data in `dtype`, not directions: 64 epsilon."""
    return min(64 * torch.finfo(dtype).eps, 1e-3)


def solve(
    r: Tensor, columns: Sequence[int], targets: Sequence[int], rcond: float = resolution(torch.float64)
) -> tuple[Tensor, Tensor]:
    """Weights (len(columns), len(targets)) of least norm, and the sums of squares left over (len(targets),); rcond: `resolution`."""
    a, b = r[:, list(columns)], r[:, list(targets)]
    # Columns differ in size by orders of magnitude; the rank is decided on unit columns.
    size = a.norm(dim=0).clamp(min=1e-300)
    weights = torch.linalg.lstsq(a / size, b, driver="gelsd", rcond=rcond).solution / size[:, None]
    return weights, (a @ weights - b).square().sum(0)
