"""Mixtures at one time for all states: sampling asks for nothing else, and it is some ten times faster than per-sample times."""

from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.guidance.cfg import Guided
from fewstep.toy import Mixture


class AtFloatTimes:
    """A mixture without anchor as a denoiser; at float times by matrix products, with v = a^2 ev + s^2 once for all states.

    A component with axes spreads by its least variance ev_0 everywhere but along r others, so that only z, the r coordinates along
    those, are needed: |x - a m|^2 / v_0 + sum_j z_j^2 (1 / v_j - 1 / v_0), and the same of the posterior mean.

    Guided towards `part`, which holds the world's first components, it is u + cfg (c - u) with c and u from the same products.
    """

    def __init__(self, world: Mixture, part: Mixture | None = None, cfg: float = 1.0) -> None:
        self.world, self.cfg = world, cfg
        self.each = world if part is None else Guided(part, world, cfg)
        self.chosen = 0 if part is None else len(part.means)
        if world.q is not None:  # ev rise along each component's axes
            self.rank = max(1, int((world.ev > world.ev[:, :1] * (1 + 1e-9)).sum(1).max()))
            axes = world.q[..., -self.rank :]
            self.axes = axes.permute(1, 0, 2).flatten(1)  # (D, K r)
            self.means = (world.means[:, None] @ axes).flatten()  # (K r): along the axes

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if isinstance(t, Tensor):
            return self.each(x, t)
        w = self.world
        a, _, s = w.path.levels(t)
        v = a * a * w.ev + s * s
        gain = a * w.ev / v  # (K, D)
        level, m = w.weights.log() - 0.5 * v.log().sum(1), w.means
        if w.q is None:
            square = x.square() @ (1 / v).T - 2 * a * x @ (m / v).T + a * a * (m * m / v).sum(1)
            r = self._weights(level - 0.5 * square)
            x0 = r @ (m - a * gain * m) + x * (r @ gain)
        else:
            (least, v), (shared, gain) = ((u[:, 0], u[:, -self.rank :]) for u in (v, gain))
            z = x @ self.axes - a * self.means  # (B, K r)
            square = x.square().sum(1, keepdim=True) - 2 * a * x @ m.T + a * a * (m * m).sum(1)
            along = (z.square() * (1 / v - 1 / least[:, None]).flatten()).unflatten(1, v.shape).sum(2)
            r = self._weights(level - 0.5 * (square / least + along))
            z = z * ((gain - shared[:, None]).flatten() * r.repeat_interleave(self.rank, 1))
            x0 = (r * (1 - a * shared)) @ m + x * (r @ shared)[:, None] + z @ self.axes.T
        return Estimate(x0, lambda: (x - a * x0) / s)

    def _weights(self, logits: Tensor) -> Tensor:
        """(B, K): responsibilities; guided, cfg r_c + (1 - cfg) r_u."""
        r = logits.softmax(1)
        if not self.chosen:
            return r
        r = (1 - self.cfg) * r
        r[:, : self.chosen] += self.cfg * logits[:, : self.chosen].softmax(1)
        return r
