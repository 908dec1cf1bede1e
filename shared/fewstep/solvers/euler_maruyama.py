"""Euler-Maruyama for every SDE that has the marginals of the path (arXiv:2011.13456, 2303.08797). 1 NFE per step.

    dx = (u -+ e score) dt + sqrt(2 e) dW,    u = a' x0 + b' y + s' eps,    score = -eps/s

    x_s = x_t + (s - t) u_t + |s - t| e_t score_t + sqrt(2 e_t |s - t|) xi

The score pulls towards the data whichever way time runs: decreasing grids sample (backward SDE), increasing ones add
noise. e = g^2/2 is the reverse-diffusion predictor of Score-SDE and SGMSE+ and the sampler of IR-SDE, e = 0 Euler's ODE
step. In z = x - b y with the estimate x0, eps = (z - a x0)/s:

    z_s = (1 + k/s_t) z_t + ((s - t) a' - a_t k/s_t) x0 + (b_t + (s - t) b' - b_s) y + sqrt(2 e |s - t|) xi
    k   = (s - t) s' - |s - t| e/s_t

Unlike DDIM this is not exact in y where b is not linear in t, nor for a perfect network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.paths.base import Triple
from fewstep.solvers.base import Solver, Stage
from fewstep.solvers.diffusion import Diffusion, OwnDiffusion


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """First order, also weakly; finite at s_s = 0. Steps out of s = 0 or of infinite rates or diffusion are DDIM's."""

    order = 1

    diffusion: Diffusion = field(default_factory=OwnDiffusion)

    def rates(self, path: Path, t: Tensor) -> Triple:
        """(a', b', s') that the steps from t follow."""
        return path.rates(t)

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        rates = self.rates(path, t)
        e = self.diffusion.strength(path, t, rates)
        b, b_next = path.schedule(t)[1], path.schedule(s)[1]
        to_z, to_x0 = slopes(path, t, s - t, e, rates)
        noise = (2 * e * (s - t).abs()).sqrt()
        return (Stage(t, (1 + to_z,), (to_x0,), noise, b - b_next + (s - t) * rates[1]),)

    def regular(self, path: Path, t: Tensor, s: Tensor, stages: int) -> Tensor:
        """Where s_t > 0 and the rates and the diffusion are finite."""
        rates = self.rates(path, t)
        finite = torch.stack([*rates, self.diffusion.strength(path, t, rates)]).isfinite().all(0)
        return finite & (path.schedule(t)[2] != 0)


def slopes(path: Path, t: Tensor, dt: Tensor, e: Tensor, rates: Triple) -> tuple[Tensor, Tensor]:
    """(weight of z, weight of x0) of the drift at t over the signed time dt, without its part in y."""
    a, _, s = path.schedule(t)
    k = (dt * rates[2] - dt.abs() * e / s) / s
    return k, dt * rates[0] - a * k
