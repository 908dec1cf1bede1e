"""Gamma sampling (CTM, arXiv:2310.02279): go down to a cleaner level, then put noise back.

With rho = s/a the level between is  rho_u = sqrt(1 - gamma^2) rho_s  and the fresh noise has std  gamma s_s:

    z_s = a_s x0 + sqrt(1 - gamma^2) s_s eps + gamma s_s xi

gamma = 1 forgets eps altogether: multistep consistency sampling (arXiv:2303.01469) and LCM (arXiv:2310.04378);
gamma = 0 is DDIM. Here the way down is a DDIM step of a denoiser; with a flow map it is exact:
`fewstep.flow_map.sample_jumps`.
"""

from dataclasses import dataclass

from torch import Tensor

from fewstep.solvers.ancestral import NoisySolver


def check_gamma(gamma: float) -> None:
    """Raise unless gamma is in [0, 1]."""
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma is {gamma}; allowed: 0 (deterministic) to 1 (all noise is fresh)")


@dataclass(frozen=True)
class GammaSampling(NoisySolver):
    """v = gamma^2 s_s^2; gamma in [0, 1]. 1 NFE per step, finite at both singular ends."""

    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_gamma(self.gamma)

    def variance(self, at: Tensor, st: Tensor, as_: Tensor, ss: Tensor) -> Tensor:
        return (self.gamma * ss) ** 2
