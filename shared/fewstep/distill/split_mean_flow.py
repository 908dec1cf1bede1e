"""SplitMeanFlow: the average velocity of an interval is that of its two parts, on a straight path (arXiv:2507.16884).

    U(x_t, t, r) = 1/(t - r) * integral of v over [r, t],  U(x_t, t, t) = v
    identity       U(x_t, t, r) = l U(x_t, t, m) + (1 - l) U(x_m, m, r)      m = t - l (t - r),  x_m = x_t - (t - m) U(x_t, t, m)
    loss           mean |U(x_t, t, r) - sg(right-hand side)|^2,  l ~ U(0, 1);  |U(x_t, t, t) - v|^2 where r = t

It is MeanFlow without a derivative (its identity is the limit l -> 0), and the shortcut model's with a free split in place of halves.
v is that of the data, or of a teacher, guided or not.
"""

from typing import ClassVar, cast

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.distill.average_velocity import Average, ConsistentAverage
from fewstep.jump import JumpGenerator
from fewstep.paths import expand


@torch.no_grad()
def split_target(u: Average, x_t: Tensor, t: Tensor, r: Tensor, share: Tensor) -> Tensor:
    """share u(x_t, t, m) + (1 - share) u(x_m, m, r), m = t - share (t - r); x_t: (B, ...), t, r and share: (B,)."""
    m, part = t - share * (t - r), expand(share, x_t)
    first = u(x_t, t, m)
    second = u(x_t - expand(t - m, x_t) * first, m, r)
    return torch.lerp(second, first, part.to(first))


class SplitMeanFlow(ConsistentAverage):
    """SplitMeanFlow from data or from a teacher; arguments as of `AverageVelocity`."""

    term: ClassVar[str] = "split_mean_flow"

    def interval_target(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond, y: Tensor | None) -> Tensor:
        """The average over two parts, split at random."""
        student, share = cast(JumpGenerator, self.student), torch.rand(len(t), dtype=t.dtype).to(t.device)
        return split_target(lambda x, t, s: student.velocity(x, t, s, cond, y), x_t, t, s, share)
