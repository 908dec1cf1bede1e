"""Stochastic two-stage steps of k-diffusion on any path. 2 NFE per step, 1 at a singular end.

DPMpp2SAncestral    DPM-Solver++(2S) to the cleaner time d, then noise back up to s (`Renoised`)
DPMppSDE            both stages are `Ancestral` steps from t, each with its own noise:

    stage 1   z_n = c_n z_t + (a_n - a_t c_n) x0_t + sqrt(v_n) xi,      lambda_n = lambda_t + r h
    stage 2   z_s = c_s z_t + (a_s - a_t c_s) ((1 - f) x0_t + f x0_n) + sqrt(v_s) xi',    f = 1/(2 r)
    c = sqrt(s^2 - v)/s_t,   v = eta^2 s^2 (1 - (rho/rho_t)^2)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.ancestral import Ancestral, Renoised
from fewstep.solvers.base import Solver, Stage
from fewstep.solvers.dpm_singlestep import DPMpp2S, inner_times


@dataclass(frozen=True)
class DPMpp2SAncestral(Renoised):
    """k-diffusion's dpmpp_2s_ancestral."""

    solver: Solver = field(default_factory=DPMpp2S)


@dataclass(frozen=True)
class DPMppSDE(Solver):
    """k-diffusion's dpmpp_sde; second order in its deterministic limit.

    Args:
        eta: 0 deterministic (DPM-Solver++(2S)), 1 the posterior of the path's SDE.
        s_noise: multiplies the fresh noise.
        r: place of the inner node in lambda.
    """

    order = 2
    eta: float = 1.0
    s_noise: float = 1.0
    r: float = 0.5

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        node, f = inner_times(path, t, s, (self.r,))[0], 1 / (2 * self.r)
        (inner,), (outer,) = (Ancestral(self.eta).stages(path, t, end, past) for end in (node, s))
        to_node, to_end = (self.s_noise * v.noise for v in (inner, outer) if v.noise is not None)
        x, e = (torch.zeros_like(f * outer.x[0]), outer.x[0]), (f * outer.e[0], (1 - f) * outer.e[0])
        return inner._replace(noise=to_node), Stage(node, x, e, to_end)
