"""Score identity distillation, and score implicit matching (arXiv:2404.04057, 2410.16794).

    delta = D_phi(x_t) - D_psi(x_t)
    SiD   L = weight delta . ((D_phi - x0) - alpha delta),   weight = 1 / mean|x0 - D_phi|
    SIM   L = weight d'(y) . (x0 - D_psi),   y = -delta,   d(y) = sqrt(|y|^2 + c^2) - c,   d'(y) = y / sqrt(|y|^2 + c^2)

The papers write scores, s = (a D - x_t)/s_t^2: their difference is (a/s_t^2) y and s_psi - grad log q(x_t|x0) is (a/s_t^2)(D_psi - x0), so
that the factors are part of the weight and of c. Gradients flow through x0 and through x_t into both networks, whose parameters stay: with
detached networks the score form has no gradient at all, and the x0 form that of DMD. With the exact fake score L of alpha = 1/2 has half the
gradient of the Fisher divergence E|delta|^2; of alpha = 1 half of what it is when the law that it is averaged over is held still, which is SIM
with d = |y|^2 / 2.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.distill.alternating import Drawn
from fewstep.distill.score_distillation import ScoreDistillation
from fewstep.distill.score_gradient import ByTeacherError, ByTime, ScoreWeight
from fewstep.distill.weighting import Even
from fewstep.generator import Generator
from fewstep.paths import expand


def sid_loss(x0: Tensor, teacher: Tensor, fake: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """weight mean( delta ((D_phi - x0) - alpha delta) ), (B,); all with their graphs but the weight."""
    delta = teacher - fake
    return weight.detach() * (delta * (teacher - x0 - alpha * delta)).flatten(1).mean(1)


@dataclass(frozen=True)
class ScoreDistance(ABC):
    """d of SIM: y (B, ...) -> d'(y) (B, ...)."""

    @abstractmethod
    def slope(self, y: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SquaredScore(ScoreDistance):
    """d = |y|^2 / 2."""

    def slope(self, y: Tensor) -> Tensor:
        return y


@dataclass(frozen=True)
class HuberScore(ScoreDistance):
    """d = sqrt(|y|^2 + c^2) - c, |y| over the whole sample."""

    c: float = 0.05

    def slope(self, y: Tensor) -> Tensor:
        norm = y.flatten(1).square().sum(1)
        return y / expand((norm + self.c**2).sqrt(), y)


def sim_loss(x0: Tensor, teacher: Tensor, fake: Tensor, weight: Tensor, distance: ScoreDistance) -> Tensor:
    """weight d'(D_psi - D_phi) . (x0 - D_psi), (B,); all with their graphs but the weight."""
    return weight.detach() * (distance.slope(fake - teacher) * (x0 - fake)).flatten(1).sum(1)


class SiD(ScoreDistillation):
    """SiD: the Fisher divergence, with alpha of 1 to 1.2 in the paper.

    Args:
        alpha: how much of |delta|^2 is taken off.
        weight: of each sample.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        alpha: float = 1.0,
        weight: ScoreWeight = ByTeacherError(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.alpha, self.weight = alpha, weight

    def match(self, x0: Tensor, x_t: Tensor, t: Tensor, teacher: Denoise, fake: Denoise, drawn: Drawn) -> Tensor:
        """sid_loss at x_t."""
        wanted, own = teacher(x_t, t).x0, fake(x_t, t).x0
        self.see(own, wanted)
        return sid_loss(x0, wanted, own, self.weight(x0, wanted, t, self.teacher.denoiser.path), self.alpha)


class SIM(ScoreDistillation):
    """SIM, whose own constants are not published.

    Args:
        distance: d; weight: of each sample.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        distance: ScoreDistance = HuberScore(),
        weight: ScoreWeight = ByTime(Even()),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.distance, self.weight = distance, weight

    def match(self, x0: Tensor, x_t: Tensor, t: Tensor, teacher: Denoise, fake: Denoise, drawn: Drawn) -> Tensor:
        """sim_loss at x_t."""
        wanted, own = teacher(x_t, t).x0, fake(x_t, t).x0
        self.see(own, wanted)
        return sim_loss(x0, wanted, own, self.weight(x0, wanted, t, self.teacher.denoiser.path), self.distance)
