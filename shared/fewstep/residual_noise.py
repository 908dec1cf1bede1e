"""RDDM's pair of outputs (arXiv:2308.13712): a network that predicts the residual r = y - x0 and the noise.

The pair (r, eps) is primary; x0 follows from the state, x0 = x - b r - s eps, which is exact where a = 1 - b.
(y - r is another, different x0 of the same outputs: it does not use the noise.)
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.estimate import Estimate
from fewstep.paths.base import Path


class ResidualNoise(nn.Module):
    """net(x_t, label, **cond) -> (B, 2 C, ...): residual in the first half of the channels, noise in the second.

    Args:
        net: (B, C, ...), (B,) labels and named conditions -> (B, 2 C, ...).
        path: an anchored path with a + b = 1; labels are its times.
    """

    def __init__(self, net: nn.Module, path: Path) -> None:
        super().__init__()
        self.net, self.path = net, path

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Estimate:
        """Estimate at per-sample times t: (B,)."""
        c = self.path.coeffs(t, x)
        out = self.net(x, t.to(x.dtype.to_real()), **(cond or {}))
        if out.shape[1] != 2 * x.shape[1]:
            raise ValueError(f"residual and noise are {2 * x.shape[1]} channels, the network gives {out.shape[1]}")
        residual, eps = out.chunk(2, dim=1)
        return Estimate(lambda: x - c.b * residual - c.s * eps, eps)

    def bind(self, cond: Cond | None = None) -> "BoundResidualNoise":
        """The plain callable (x, t) -> Estimate with conditions fixed."""
        return BoundResidualNoise(self, cond or {})


class BoundResidualNoise:
    """A `ResidualNoise` denoiser with its conditions fixed."""

    def __init__(self, denoiser: ResidualNoise, cond: Mapping[str, Tensor]) -> None:
        self.denoiser, self.cond = denoiser, cond

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        return self.denoiser(x, torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x)), self.cond)
