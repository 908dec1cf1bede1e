"""SLAM, sub-path linear approximation (arXiv:2404.13903): consistency from any point between a state and the teacher's step from it.

    z = x - b y,   z_{g,t} = (1 - g) (a_t/a_s) z_s + g z_t,   g ~ U[0, 1]
    L = d( f(x_{g,t}, g, t), sg f^-(x_s, 1, s) )

The student is told g as a scalar condition; 1 where it is sampled. g = 1 is latent consistency distillation, bit for bit. The paper does
not say which g the target is given; 1 is what makes it the end point of x_s.

The paper's paths keep a_t/a_s above .88. Where a_t = 0, as at the noisy end of a rectified flow, the line ends at 0 and small g leave nothing
of x_t to learn from: with g in [0, 1] a step from there on the ring is .26 from the teacher's sample, with g in [.5, 1] .12, with g in
[.9, 1] .04 as without sub-paths. `low` is for such paths.
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.distill.consistency import ConsistencyDistillation, EndPoint
from fewstep.generator import Generator
from fewstep.paths import Path, expand


def between(path: Path, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, g: Tensor, y: Tensor | None = None) -> Tensor:
    """x_{g,t}: (B, ...), from states (B, ...), times and shares g: (B,)."""
    (a_t, b_t, _), (a_s, b_s, _) = path.schedule(t.double()), path.schedule(s.double())
    to_t, to_s = expand(g, x_t), expand((1 - g) * (a_t / a_s), x_t)
    if y is None:
        return to_s * x_s + to_t * x_t
    b_t, b_s = expand(b_t, y), expand(b_s, y)
    return to_s * (x_s - b_s * y) + to_t * (x_t - b_t * y) + b_t * y


class SLAM(ConsistencyDistillation):
    """The remaining arguments are those of `ConsistencyDistillation`; the paper's are LCM's.

    Args:
        low: g is uniform in [low, 1]; 0 in the paper.
    """

    def __init__(self, teacher: Generator, iterations: int, low: float = 0.0, **kwargs: Any) -> None:
        if not 0 <= low <= 1:
            raise ValueError(f"the share g is drawn from [low, 1] with low in [0, 1], not {low}")
        super().__init__(teacher, iterations, **kwargs)
        self.low = low
        self.tell("g", 100.0, 1.0)

    def compare(self, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, cond: Cond, y: Tensor | None) -> Tensor:
        """The loss from a point between the two states."""
        g = 1 - (1 - self.low) * torch.rand(len(x_t), device=x_t.device)
        x_g = between(self.student.denoiser.path, x_t, t, x_s, s, g, y)
        return super().compare(x_g, t, x_s, s, {**cond, "g": g}, y)

    def target_point(self, cond: Cond, y: Tensor | None) -> EndPoint:
        """f^- with g = 1."""
        return super().target_point({**cond, "g": torch.ones_like(cond["g"])}, y)
