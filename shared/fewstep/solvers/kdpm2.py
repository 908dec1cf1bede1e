"""DPM-Solver-2 under the names of k-diffusion and diffusers. 2 NFE per step, 1 at a singular end.

    z = x/a, rho = s/a, rho_n = sqrt(rho_t rho_s)
    z_n = z_t + (rho_n - rho_t) eps_t        z_s = z_t + (rho_s - rho_t) eps_n

The midpoint rule in rho with the inner node halfway in log rho: this is DPM-Solver-2, singlestep, noise form.
"""

from dataclasses import dataclass, field

from fewstep.solvers.ancestral import Renoised
from fewstep.solvers.base import Solver
from fewstep.solvers.dpm_singlestep import DPM2S

# k-diffusion's dpm_2, diffusers' KDPM2DiscreteScheduler.
KDPM2 = DPM2S


@dataclass(frozen=True)
class KDPM2Ancestral(Renoised):
    """k-diffusion's dpm_2_ancestral, diffusers' KDPM2AncestralDiscreteScheduler."""

    solver: Solver = field(default_factory=DPM2S)
