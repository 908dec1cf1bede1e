"""How much noise a sampling SDE adds: the function e(t) >= 0 of  dx = (u -+ e score) dt + sqrt(2 e) dW.

u = a' x0 + b' y + s' eps is the velocity of the path. The marginals are those of the path for every e
(arXiv:2303.08797): e = 0 is the probability-flow ODE, and e = g^2/2 the reverse of the path's own
SDE, whose noise is

    g^2 = (s^2)' - 2 f s^2 = 2 s (s' - f s),    f = a'/a
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.paths.base import Triple


@dataclass(frozen=True)
class Diffusion(ABC):
    """e(t), elementwise."""

    @abstractmethod
    def strength(self, path: Path, t: Tensor, rates: Triple) -> Tensor:
        """e at times t, where the path's (a', b', s') are `rates`; infinite where a step cannot start."""


@dataclass(frozen=True)
class OwnDiffusion(Diffusion):
    """e = eta^2 g^2 / 2: eta = 1 reverses the path's own SDE, eta = 0 is the ODE. Infinite at a = 0 unless eta = 0."""

    eta: float = 1.0

    def strength(self, path: Path, t: Tensor, rates: Triple) -> Tensor:
        if self.eta == 0.0:
            return torch.zeros_like(t)
        (a, _, s), (da, _, ds) = path.schedule(t), rates
        return self.eta**2 * s * (ds - da / a * s)


@dataclass(frozen=True)
class ConstantDiffusion(Diffusion):
    """e = level at all times. e/s, and with it the drift, grows without bound towards s = 0."""

    level: float = 1.0

    def strength(self, path: Path, t: Tensor, rates: Triple) -> Tensor:
        return torch.full_like(t, self.level)


@dataclass(frozen=True)
class NoiseDiffusion(Diffusion):
    """e = scale s(t): vanishes with the noise of the path, so that the drift e/s eps stays finite at both ends of a
    bridge.
    """

    scale: float = 1.0

    def strength(self, path: Path, t: Tensor, rates: Triple) -> Tensor:
        return self.scale * path.schedule(t)[2]
