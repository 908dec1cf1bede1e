"""From signed distances along a ray to optical depths: how much light each interval between two samples takes.

    tau_i >= 0,   transmittance T_i = exp(-sum_{j<i} tau_j),   weight w_i = T_i - T_{i+1} = T_i (1 - exp(-tau_i))

    NeuS         Phi = sigmoid(k f):  1 - alpha_i = min(Phi(f_{i+1})/Phi(f_i), 1)     (arXiv:2106.10689, eq. 13)
    NeuSCosine   the same on f_mid -+ |d.n| delta/2, from the slope at the middle
    VolSDF       sigma = k Psi(-k f), Psi the law of a Laplace variable; tau = sigma delta  (arXiv:2106.12052, eq. 2)

NeuS puts opacity 1/2 on the silhouette; VolSDF's are fat, since it also counts what passes outside of the surface.
shapes: sdf, t (..., S) at samples in the order of the ray -> tau (..., S - 1)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


@dataclass(frozen=True)
class Opacity(ABC):
    """k: sharpness, the inverse width of the surface in the units of the world.

    Raises:
        ValueError: k that is not positive.
    """

    k: float = 64.0

    def __post_init__(self) -> None:
        if not self.k > 0:
            raise ValueError(f"the sharpness k is positive, not {self.k}")

    @abstractmethod
    def depth(self, sdf: Tensor, t: Tensor, slope: Tensor | None = None) -> Tensor:
        """tau (..., S - 1). slope: (..., S) d.n, the rate of sdf along the ray, for those that need it."""


@dataclass(frozen=True)
class NeuS(Opacity):
    """The consecutive form: needs no normals."""

    def depth(self, sdf: Tensor, t: Tensor, slope: Tensor | None = None) -> Tensor:
        log_phi = logsigmoid(self.k * sdf)
        return relu(log_phi[..., :-1] - log_phi[..., 1:])


@dataclass(frozen=True)
class NeuSCosine(Opacity):
    """From the distance and its slope in the middle of each interval."""

    def depth(self, sdf: Tensor, t: Tensor, slope: Tensor | None = None) -> Tensor:
        """Raises ValueError without slopes."""
        if slope is None:
            raise ValueError("the cosine form of NeuS needs normals: render with normals, or take NeuS")
        half = 0.25 * relu(-slope[..., :-1] - slope[..., 1:]) * (t[..., 1:] - t[..., :-1])
        middle = 0.5 * (sdf[..., :-1] + sdf[..., 1:])
        return relu(logsigmoid(self.k * (middle + half)) - logsigmoid(self.k * (middle - half)))


@dataclass(frozen=True)
class VolSDF(Opacity):
    """Density of the distance, trapezoidal within each interval."""

    def density(self, sdf: Tensor) -> Tensor:
        """sigma, the shape of sdf."""
        decay = 0.5 * torch.exp(-self.k * sdf.abs())
        return self.k * torch.where(sdf > 0, decay, 1 - decay)

    def depth(self, sdf: Tensor, t: Tensor, slope: Tensor | None = None) -> Tensor:
        sigma = self.density(sdf)
        return 0.5 * (sigma[..., :-1] + sigma[..., 1:]) * (t[..., 1:] - t[..., :-1])


def point_weights(tau: Tensor) -> tuple[Tensor, Tensor]:
    """tau (..., S - 1) -> (weights of the S samples, what passes (...)); each interval's weight is shared by its two ends."""
    passed = torch.exp(-tau.cumsum(-1))
    before = torch.cat([torch.ones_like(passed[..., :1]), passed[..., :-1]], -1)
    half = 0.5 * (before - passed)
    edge = torch.zeros_like(half[..., :1])
    return torch.cat([half, edge], -1) + torch.cat([edge, half], -1), passed[..., -1]
