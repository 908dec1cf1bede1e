"""Affine Gaussian paths: every process is x_t = a(t) x0 + b(t) y + s(t) eps, larger t is noisier.

y is the anchor (degraded photograph, noisy speech); b = 0 on paths without one. A path writes (a, b, s);
its time derivatives come from forward-mode autodiff unless it writes them too. z = x - b y removes the
anchor, so solvers and grids see (a, s) alone.
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Coeffs(NamedTuple):
    """a, b, s and their time derivatives at given times, each (B, 1, ..., 1)."""

    a: Tensor
    b: Tensor
    s: Tensor
    da: Tensor
    db: Tensor
    ds: Tensor


Triple = tuple[Tensor, Tensor, Tensor]


def expand(v: Tensor, x: Tensor) -> Tensor:
    """Per-sample scalars (B,) as (B, 1, ..., 1) beside x: (B, ...), in the dtype of x."""
    return v.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class Path(ABC):
    """x_t = a x0 + b y + s eps for t in [t_min, t_max]. Frozen dataclasses: their fields are their configuration."""

    anchored: ClassVar[bool] = False

    @property
    def t_min(self) -> float:
        """The clean end of the path."""
        return 0.0

    @property
    def t_max(self) -> float:
        """The noisy end of the path."""
        return 1.0

    @abstractmethod
    def schedule(self, t: Tensor) -> Triple:
        """(a, b, s), elementwise in t (any shape). NaN times give NaN."""

    def rates(self, t: Tensor) -> Triple:
        """(a', b', s') = d/dt schedule(t), elementwise; forward-mode autodiff unless a path knows better."""
        # Not torch.func.jvp, whose first call imports torch._dynamo: seconds. Dual numbers refuse stride-0 inputs.
        t = t.contiguous()
        with forward_ad.dual_level():
            moving = self.schedule(forward_ad.make_dual(t, torch.ones_like(t)))
            da, db, ds = (forward_ad.unpack_dual(v).tangent for v in moving)
        zero = torch.zeros_like(t)  # of what does not move
        return (zero if da is None else da, zero if db is None else db, zero if ds is None else ds)

    def levels(self, t: float) -> tuple[float, float, float]:
        """(a, b, s) at one time as plain numbers, remembered."""
        return _levels(self, t)

    def coeffs(self, t: Tensor, x: Tensor) -> Coeffs:
        """Coefficients at t: (B,) or (1,), shaped for x: (B, ...). Computed in float64, returned in x's dtype."""
        t = t.double() if t.device.type != "mps" else t
        return Coeffs(*(expand(v, x) for v in (*self.schedule(t), *self.rates(t))))

    def sample(self, x0: Tensor, eps: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x_t = a x0 + b y + s eps; x0, eps, y: (B, ...), t: (B,)."""
        a, b, s = (expand(v, x0) for v in self.schedule(t.double()))
        x = a * x0 + s * eps
        return x if y is None else x + b * y

    def velocity(self, x0: Tensor, eps: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """u = dx_t/dt = a' x0 + b' y + s' eps."""
        da, db, ds = (expand(v, x0) for v in self.rates(t.double()))
        u = da * x0 + ds * eps
        return u if y is None else u + db * y

    def start(self, noise: Tensor, y: Tensor | None = None, t: float | None = None) -> Tensor:
        """Where sampling begins, at t, t_max unless given: s eps without an anchor, (a + b) y + s eps with one.

        With an anchor the unknown a x0 is replaced by a y (ResShift drops a (x0 - y) in the same way). Without one it is left out, so that below
        t_max the state is no sample of the path's: right for what was trained to begin so (SiD's students at sigma 2.5, arXiv:2404.04057).
        """
        a, b, s = self.levels(self.t_max if t is None else t)
        x = s * noise
        return x if y is None else x + (a + b) * y

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda = log(a / s), half the log signal-to-noise ratio; +inf where s = 0, -inf where a = 0."""
        a, _, s = self.schedule(t)
        return a.log() - s.log()

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        """The inverse of log_snr in float64, by bisection on [t_min, t_max] unless a path has a closed form."""
        lam = lam.double()
        lo = torch.full_like(lam, self.t_min)
        hi = torch.full_like(lam, self.t_max)
        for _ in range(100):
            mid = (lo + hi) / 2
            noisier = self.log_snr(mid) < lam  # mid lies beyond the wanted time
            lo, hi = torch.where(noisier, lo, mid), torch.where(noisier, mid, hi)
        return torch.where(lam.isnan(), lam, (lo + hi) / 2)


@lru_cache(maxsize=4096)
def _levels(path: Path, t: float) -> tuple[float, float, float]:
    a, b, s = (v.item() for v in path.schedule(torch.tensor(t, dtype=torch.float64)))
    return a, b, s


def nearest_time(path: Path, lam: Tensor) -> Tensor:
    """The time of log-SNR lam, elementwise in float64; the nearest end where the path does not reach it."""
    noisy, clean = path.log_snr(torch.tensor([path.t_max, path.t_min], dtype=torch.float64, device=lam.device))
    lam = lam.double()
    t = path.time_of_log_snr(lam.clamp(noisy, clean)).clamp(path.t_min, path.t_max)
    return torch.where(lam <= noisy, path.t_max, torch.where(lam >= clean, path.t_min, t))
