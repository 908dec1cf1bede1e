"""RF++: one round of reflow is enough, with the right times and loss (arXiv:2405.20320).

    t ~ e^(4 t) + e^(4 (1 - t)),   x_t = (1 - t) x + t z
    L = (1 - t) h(u - (z - x)) + p(x_t - t u, x)  [/ t],      h(d) = (sqrt(|d|^2 + c^2) - c)/D,  c = 0.00054 D

p is a perceptual distance. Without it nothing is learnt at t = 1 itself, where the weight is 0. h is over the sample and then divided by
its dimension D, unlike iCT's (`PseudoHuber`), whose c grows with sqrt(D).

Written on any path with a for 1 - t and s for t; meant for rectified flows. Teachers of another path come in by a change of variables
(fewstep/convert.py). The paper's hybrid pairs, real data with the noise that the inverted teacher gives it: hybrid_pool.py.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.distances import Distance, pseudo_huber
from fewstep.distill.reflow import Reflow
from fewstep.generator import Generator
from fewstep.paths import Path
from fewstep.times import TimeSampler, UShapedTimes
from fewstep.train.shell import Batch, Terms


@dataclass(frozen=True)
class HuberPerDimension(Distance):
    """(sqrt(|d|^2 + c^2) - c)/D with |d|^2 = sum d^2 over the sample and c = `scale` D."""

    scale: float = 0.00054

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        d = (a - b).flatten(1)
        return pseudo_huber(d.square().sum(1), self.scale * d.shape[1]) / d.shape[1]


def rf_plus_loss(
    f: Denoise,
    path: Path,
    noise: Tensor,
    target: Tensor,
    t: Tensor,
    distance: Distance,
    perceptual: Distance | None = None,
    over_time: bool = False,
    y: Tensor | None = None,
) -> Tensor:
    """a_t d(velocity, line's velocity) + perceptual(x0, target) [/ s_t], (B,); noise, target, y: (B, ...), t: (B,)."""
    e = f(path.sample(target, noise, t, y), t)
    a, _, s = path.schedule(t.double())
    loss = a.to(noise.dtype) * distance(path.velocity(e.x0, e.eps, t), path.velocity(target, noise, t))
    if perceptual is None:
        return loss
    seen = perceptual(e.x0, target)
    return loss + (seen / s.to(seen.dtype) if over_time else seen)


class RFPlusPlus(Reflow):
    """Reflow with the times and the loss of RF++.

    Args:
        perceptual: p, of samples; none leaves the first term alone.
        over_time: divide it by t.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        times: TimeSampler = UShapedTimes(),
        distance: Distance = HuberPerDimension(),
        perceptual: Distance | None = None,
        over_time: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, times=times, distance=distance, **kwargs)
        self.perceptual, self.over_time = perceptual, over_time

    def loss(self, batch: Batch) -> Terms:
        """RF++ on a batch of pairs."""
        noise, target, _, cond, y = self.pairs(batch)
        path = self.student.denoiser.path
        t = self.times(len(noise), path).to(noise.device)
        f = self.student.denoiser.bind(cond, y)
        loss = rf_plus_loss(f, path, noise, target, t, self.distance, self.perceptual, self.over_time, y)
        return {"reflow": loss.mean()}
