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


def solve(
    r: Tensor, columns: Sequence[int], targets: Sequence[int], rounding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights (len(columns), len(targets)), of least norm where they are not unique, and the sums of squares left over (len(targets),).

    rounding: (p,) the norm of the rounding errors in each column. Then it is |A w - b|^2 + sum_j (rounding_j w_j)^2 that is least:
    what these weights are expected to leave over where the errors are drawn anew.
    """
    a, b = r[:, list(columns)], r[:, list(targets)]
    seen, wanted = a, b
    if rounding is not None:
        seen = torch.cat([a, torch.diag(rounding[list(columns)])])
        wanted = torch.cat([b, b.new_zeros(len(columns), b.shape[1])])
    # Columns differ in size by orders of magnitude; the rank is decided on unit columns.
    size = seen.norm(dim=0).clamp(min=1e-300)
    rcond = 64 * torch.finfo(r.dtype).eps
    weights = torch.linalg.lstsq(seen / size, wanted, driver="gelsd", rcond=rcond).solution / size[:, None]
    return weights, (a @ weights - b).square().sum(0)
