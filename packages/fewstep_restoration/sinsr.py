"""SinSR (arXiv:2311.14760): distil the deterministic teacher into one evaluation, and teach the same network its inverse.

    L = |f(x_T, T) - F(x_T)|^2  +  |f(F(x_T), 0) - x_T|^2  +  |f(sg f(x0, 0), T) - x0|^2

F(x_T) is the teacher's deterministic output from the same noise. The inversion calls f(., 0) are fed an image with the time label of
index 0 but with the scaling of index T-1, as in the official code: their output is a state at T.
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoiser, combine
from fewstep.distill.pool import PairPool
from fewstep.distill.trajectory import TrajectoryRegression, regression_loss
from fewstep.generator import Generator
from fewstep.train.shell import Batch, Terms


def predict(denoiser: Denoiser, x: Tensor, label: float, cond: Cond, y: Tensor | None) -> Tensor:
    """The network's x0 output at index T-1's scaling, fed the time label of t = label; f(x, T) for label T-1, f(x, 0) for 0."""
    path = denoiser.path
    end = torch.full((len(x),), path.t_max, dtype=torch.float64, device=x.device)
    c = path.coeffs(end, x)
    i, j = denoiser.prediction.input_scale(c)
    t = torch.full_like(end, label)
    seen = i * x if y is None else i * x + j * y
    out = denoiser.net(seen, denoiser.prediction.label(t, path.coeffs(t, x)).to(x.dtype), **cond)
    k = denoiser.prediction.affine(c)
    return combine(k.x0_x, x, k.x0_out, out, k.x0_y, y)


class SinSR(TrajectoryRegression):
    """Trajectory regression plus the inversion and ground-truth terms.

    Args:
        inversion, ground_truth: their weights (1 and 1 in the paper).
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        pool: PairPool | None = None,
        inversion: float = 1.0,
        ground_truth: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, pool, **kwargs)
        self.inversion, self.ground_truth = inversion, ground_truth

    def loss(self, batch: Batch) -> Terms:
        """The three terms, each a mean square in the space of the path."""
        noise, target, x0, cond, y = self.pairs(batch)
        f, path = self.student.denoiser, self.student.denoiser.path
        end, x_end = path.t_max, path.start(noise, y)
        terms = {"distill": regression_loss(lambda x: predict(f, x, end, cond, y), x_end, target).mean()}
        terms["inversion"] = self.inversion * (predict(f, target, 0.0, cond, y) - x_end).square().mean()
        with torch.no_grad():
            inverted = predict(f, x0, 0.0, cond, y)
        terms["ground_truth"] = self.ground_truth * (predict(f, inverted, end, cond, y) - x0).square().mean()
        return terms
