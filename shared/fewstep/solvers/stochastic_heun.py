"""Heun's method for every SDE that has the marginals of the path. 2 NFE per step.

    drift F(x, t) = (u - sign e score), noise n = sqrt(2 e |s - t|) xi, as in euler_maruyama.py

StochasticHeun     x_p = x_t + (s - t) F(x_t, t) + n,    x_s = x_t + (s - t)/2 (F(x_t, t) + F(x_p, s)) + n
InterpolantHeun    x_h = x_t + n,   x_p = x_h + (s - t) F(x_h, s),   x_s = x_h + (s - t)/2 (F(x_h, s) + F(x_p, s))

The first is the trapezoidal rule with additive noise: weak order 2. The second is the sampler published with stochastic
interpolants (arXiv:2303.08797): noise first, then both slopes at the end of the step. That treats the time dependence
of the drift to first order only, whatever e: order 1, also without noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Solver, Stage
from fewstep.solvers.diffusion import Diffusion, OwnDiffusion
from fewstep.solvers.euler_maruyama import slopes


@dataclass(frozen=True)
class StochasticHeun(Solver):
    """Second order, also weakly; steps from a = 0 or s = 0, or into s = 0, are DDIM steps."""

    order = 2

    diffusion: Diffusion = field(default_factory=OwnDiffusion)

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        (rt, rs), dt, b = (path.rates(t), path.rates(s)), s - t, path.schedule(t)[1] - path.schedule(s)[1]
        et, es = self.diffusion.strength(path, t, rt), self.diffusion.strength(path, s, rs)
        (z_t, x0_t), (z_s, x0_s) = slopes(path, t, dt, et, rt), slopes(path, s, dt, es, rs)
        # The mean of e over the step, to second order: the noise of a step is the same in both stages.
        predict = Stage(t, (1 + z_t,), (x0_t,), ((et + es) * dt.abs()).sqrt(), b + dt * rt[1])
        x, e = (1 + z_s / 2, -z_t / 2), (x0_s / 2, -x0_t / 2)
        return predict, Stage(s, x, e, y=dt * (rs[1] - rt[1]) / 2)


@dataclass(frozen=True)
class InterpolantHeun(Solver):
    """First order (see above), kept to reproduce published numbers; singular ends as in `StochasticHeun`."""

    order = 1

    diffusion: Diffusion = field(default_factory=OwnDiffusion)

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        (rt, rs), dt, b = (path.rates(t), path.rates(s)), s - t, path.schedule(t)[1] - path.schedule(s)[1]
        et, es = self.diffusion.strength(path, t, rt), self.diffusion.strength(path, s, rs)
        z, x0 = slopes(path, s, dt, es, rs)
        shake = Stage(t, (t * 0 + 1,), (), (2 * et * dt.abs()).sqrt(), b)
        predict = Stage(s, (1 + z,), (x0,), y=dt * rs[1])
        return shake, predict, Stage(s, (z / 2, 1 + z / 2), (x0 / 2, x0 / 2), y=dt * rs[1])
