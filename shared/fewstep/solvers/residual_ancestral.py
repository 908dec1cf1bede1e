"""RDDM's step between deterministic and ancestral (arXiv:2308.13712): a unit-gain chain with less noise.

    x_s = x_t - (A_t - A_s) r - (sqrt(B_t) - sqrt(B_s - v)) eps + sqrt(v) xi,    v = eta^2 (B_t - B_s) B_s / B_t

r = y - x0, B = s^2. eta = 0 (all restoration tasks of the official code) is DDIM, eta = 1 `UnitGainAncestral`. The
Markov chain of the same marginals is `Ancestral(eta)`. The published networks predict r and eps separately, and then
r = y - x0 need not hold; here (x0, eps) is one consistent pair.
"""

from dataclasses import dataclass

from torch import Tensor

from fewstep.solvers.ancestral import UnitGainAncestral


@dataclass(frozen=True)
class ResidualAncestral(UnitGainAncestral):
    """v = eta^2 s_s^2 (1 - s_s^2/s_t^2); eta in [0, 1]. 1 NFE per step, finite at both singular ends."""

    eta: float = 0.0

    def variance(self, at: Tensor, st: Tensor, as_: Tensor, ss: Tensor) -> Tensor:
        return self.eta**2 * super().variance(at, st, as_, ss)
