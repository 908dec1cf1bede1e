"""Grids that lay out the noise level rho = s/a (EDM's sigma) rather than the time."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.grids.base import between
from fewstep.paths import Path


def of_levels(
    name: str,
    path: Path,
    n: int,
    sigma_min: float,
    sigma_max: float | None,
    clean: bool,
    values: Callable[[float, float, Tensor], Tensor],
) -> Tensor:
    """Times of values(smax, smin, u), u from 0 to 1: n levels and the clean end, or n + 1 levels if not `clean`.

    sigma_max None is the path's own at t_max, which must then be finite.
    """
    hi, lo = between(path, n, None)
    own = (-path.log_snr(torch.tensor(hi, dtype=torch.float64))).exp().item()
    smin, smax = sigma_min, own if sigma_max is None else sigma_max
    if not 0 < smin < smax < float("inf"):
        raise ValueError(f"{name} needs 0 < sigma_min < sigma_max < inf, got {smin} and {smax}: set them")
    u = torch.linspace(0, 1, n if clean else n + 1, dtype=torch.float64)
    t = path.time_of_log_snr(-values(smax, smin, u).log())
    if sigma_max is None:
        t[0] = hi
    if not t[-1] > lo:
        raise ValueError(f"{name}: sigma_min {smin} is below what {type(path).__name__} reaches before its clean end")
    return torch.cat([t, torch.tensor([lo], dtype=torch.float64)]) if clean else t
