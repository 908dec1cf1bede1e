"""DPM-Solver++(2M) (arXiv:2211.01095): extrapolate x0 linearly in lambda = log(a/s). 1 NFE per step.

h = lambda_s - lambda_t,   r = h / (2 (lambda_t - lambda_past))
z_s = (s_s / s_t) z_t - a_s expm1(-h) ((1 + r) x0_t - r x0_past)
"""

from dataclasses import dataclass

from fewstep.solvers.dpm_multistep import DPMMultistep


@dataclass(frozen=True)
class DPMpp2M(DPMMultistep):
    """Second order multistep; first order at the start and where lambda is infinite. The settings are those of `DPMMultistep`."""
