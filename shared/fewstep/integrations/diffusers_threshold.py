"""diffusers' dynamic thresholding of x0 (Imagen, arXiv:2205.11487), whose divisor is bounded from both sides."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.guidance.thresholding import quantile
from fewstep.paths import expand


@dataclass(frozen=True)
class BoundedThreshold:
    """x0' = clamp(x0, -m, m)/m, m the quantile `ratio` of |x0| over the sample, kept in [1, most]; most = 1 is a plain
    clamp.
    """

    ratio: float = 0.995
    most: float = 1.0

    def __call__(self, x0: Tensor) -> Tensor:
        m = expand(quantile(x0.abs().flatten(1).float(), self.ratio).clamp(1.0, self.most), x0)
        return x0.clamp(-m, m) / m
