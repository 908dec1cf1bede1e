"""Stochastic two-stage steps of k-diffusion on any path. 2 NFE per step, 1 at a singular end.

DPMpp2SAncestral    DPM-Solver++(2S) to the cleaner time d, then noise back up to s (`Renoised`)
DPMppSDE            both stages are `Ancestral` steps from t, rho = s/a:

    stage 1   z_n = c_n z_t + (a_n - a_t c_n) x0_t + sqrt(v_n) xi_n,      lambda_n = lambda_t + r h
    stage 2   z_s = c_s z_t + (a_s - a_t c_s) ((1 - f) x0_t + f x0_n) + sqrt(v_s) xi_s,    f = 1/(2 r)
    c = sqrt(s^2 - v)/s_t,   v = eta^2 s^2 (1 - (rho/rho_t)^2)

xi_n and xi_s are the increments of one Brownian motion over rho, so their correlation is sqrt((rho_t - rho_n)/(rho_t - rho_s)).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.ancestral import Ancestral, Renoised
from fewstep.solvers.base import Solver, Stage, finite_or_zero
from fewstep.solvers.dpm_singlestep import DPMpp2S, inner_times


@dataclass(frozen=True)
class DPMpp2SAncestral(Renoised):
    """k-diffusion's dpmpp_2s_ancestral."""

    solver: Solver = field(default_factory=DPMpp2S)


@dataclass(frozen=True)
class DPMppSDE(Solver):
    """k-diffusion's dpmpp_sde.

    Args:
        eta: 0 deterministic (DPM-Solver++(2S)), 1 the posterior of the path's SDE.
        s_noise: multiplies the fresh noise.
        r: place of the inner node in lambda.
        brownian: correlate the two draws of a step, as k-diffusion does unless given another source of noise. Independent draws
            cost an order: x0_n has then seen none of the noise that ends up in z_s.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    r: float = 0.5
    brownian: bool = True

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 2 if self.brownian or self.eta == 0 else 1

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        node, f = inner_times(path, t, s, (self.r,))[0], 1 / (2 * self.r)
        inner, outer = (ancestral(path, t, end, self.eta) for end in (node, s))
        # With correlation q, sqrt(v_s) xi_s = g sqrt(v_n) xi_n + sqrt((1 - q^2) v_s) xi', and stage 1 has left sqrt(v_n) xi_n in z_n.
        rho_t, rho_n, rho_s = ((-path.log_snr(v)).exp() for v in (t, node, s))
        shared = (rho_t - rho_n) / (rho_t - rho_s) if self.brownian else torch.zeros_like(rho_t)
        g = finite_or_zero((shared * outer.v / inner.v).sqrt())
        x, e = (g, outer.c - g * inner.c), (f * outer.gain, (1 - f) * outer.gain - g * inner.gain)
        first = Stage(t, (inner.c,), (inner.gain,), self.s_noise * inner.v.sqrt())
        return first, Stage(node, x, e, self.s_noise * ((1 - shared) * outer.v).sqrt())


class NoisyStep(NamedTuple):
    """z_s = c z_t + gain x0 + sqrt(v) xi."""

    c: Tensor
    gain: Tensor
    v: Tensor


def ancestral(path: Path, t: Tensor, s: Tensor, eta: float) -> NoisyStep:
    """The step of `Ancestral`."""
    (at, _, st), (as_, _, ss) = path.schedule(t), path.schedule(s)
    v = torch.minimum(Ancestral(eta).variance(at, st, as_, ss), ss**2)
    c = (ss**2 - v).sqrt() / st
    return NoisyStep(c, as_ - at * c, v)
