"""Mixtures at one time for all states: sampling asks for nothing else, and it is some ten times faster than per-sample times."""

import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.guidance.cfg import Guided
from fewstep.toy import Mixture


class AtFloatTimes:
    """A mixture without anchor as a denoiser; at float times by matrix products, with v = a^2 ev + s^2 once for all states.

    Guided towards `part`, which holds the world's first components, it is u + cfg (c - u) with c and u from the same products.
    """

    def __init__(self, world: Mixture, part: Mixture | None = None, cfg: float = 1.0) -> None:
        self.world, self.cfg = world, cfg
        self.each = world if part is None else Guided(part, world, cfg)
        self.chosen = 0 if part is None else len(part.means)
        # (K, 1, D), on the axes
        self.means = world.means[:, None] if world.q is None else world.means[:, None] @ world.q

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if isinstance(t, Tensor):
            return self.each(x, t)
        w = self.world
        a, _, s = (c.item() for c in w.path.schedule(torch.tensor(t, dtype=torch.float64)))
        v = a * a * w.ev + s * s
        gain = a * w.ev / v  # (K, D)
        level = w.weights.log() - 0.5 * v.log().sum(1)
        if w.q is None:
            m = w.means
            square = x.square() @ (1 / v).T - 2 * a * x @ (m / v).T + a * a * (m * m / v).sum(1)
            r = self._weights(level - 0.5 * square)
            x0 = r @ (m - a * gain * m) + x * (r @ gain)
        else:
            z = x @ w.q - a * self.means  # (K, B, D)
            r = self._weights(level - 0.5 * (z.square() @ (1 / v)[..., None])[..., 0].T)
            x0 = r @ w.means + ((z * gain[:, None] * r.T[..., None]) @ w.q.mT).sum(0)
        return Estimate(x0, lambda: (x - a * x0) / s)

    def _weights(self, logits: Tensor) -> Tensor:
        """(B, K): responsibilities; guided, cfg r_c + (1 - cfg) r_u."""
        r = logits.softmax(1)
        if not self.chosen:
            return r
        r = (1 - self.cfg) * r
        r[:, : self.chosen] += self.cfg * logits[:, : self.chosen].softmax(1)
        return r
