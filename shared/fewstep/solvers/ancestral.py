"""Stochastic first-order steps: DDIM with fresh noise of variance v (arXiv:2010.02502, eq. 12). 1 NFE per step.

    z_s = a_s x0 + sqrt(s_s^2 - v) eps + sqrt(v) xi,     eps = (z_t - a_t x0)/s_t

Which v is the path's own chain decides the class: the marginals alone do not.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Solver, Stage


@dataclass(frozen=True)
class NoisySolver(Solver):
    """Writes `variance`; order 1 in its deterministic limit v = 0."""

    order = 1

    @abstractmethod
    def variance(self, at: Tensor, st: Tensor, as_: Tensor, ss: Tensor) -> Tensor:
        """v in [0, s_s^2], elementwise."""

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        (at, _, st), (as_, _, ss) = path.schedule(t), path.schedule(s)
        v = self.variance(at, st, as_, ss)
        c_x = (ss**2 - v).clamp(min=0).sqrt() / st
        return (Stage(t, (c_x,), (as_ - at * c_x,), v.sqrt()),)


@dataclass(frozen=True)
class Ancestral(NoisySolver):
    """The Markov posterior of the path's SDE: v = eta^2 s_s^2 (1 - (rho_s / rho_t)^2), rho = s/a.

    eta = 1 is DDPM ancestral sampling (and IR-SDE's posterior with the anchor removed), eta = 0 is DDIM.
    """

    eta: float = 1.0

    def variance(self, at: Tensor, st: Tensor, as_: Tensor, ss: Tensor) -> Tensor:
        return self.eta**2 * ss**2 * (1 - (at * ss / (as_ * st)) ** 2)


@dataclass(frozen=True)
class UnitGainAncestral(NoisySolver):
    """The posterior of chains with unit-gain kernels x_t = x_s + ... (ResShift, RDDM): v = s_s^2 (1 - s_s^2 / s_t^2).

    On ResShift: mean (eta_s/eta_t) x_t + (1 - eta_s/eta_t) x0, variance kappa^2 (eta_s/eta_t)(eta_t - eta_s) (arXiv:2307.12348, eq. 7).
    """

    def variance(self, at: Tensor, st: Tensor, as_: Tensor, ss: Tensor) -> Tensor:
        return ss**2 * (1 - (ss / st) ** 2)
