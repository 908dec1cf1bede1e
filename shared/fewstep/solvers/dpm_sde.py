"""SDE-DPM-Solver(++), multistep (arXiv:2211.01095, k-diffusion's 2M SDE and 3M SDE). 1 NFE per step.

The reverse SDE with its noise scaled by eta in variance, solved like the ODE by exact integrals over lambda, g = (1 + eta) h:

    data form    z_s = (s_s/s_t) e^(-eta h) z_t + a_s (1 - e^(-g)) x0 + differences + s_s sqrt(1 - e^(-2 eta h)) xi
    noise form   z_s = (a_s/a_t) z_t - (1 + eta) s_s (e^h - 1) eps + differences + s_s sqrt(eta (e^(2h) - 1)) xi

The differences are those of dpm_multistep.py with E_k = a_s g phi_k(-g) in data form and (1 + eta) E_k in noise form. eta = 0 is
the ODE solver. This exponential eta equals DDIM's eta at 0 and 1 only.
diffusers' third-order "sde-dpmsolver++" has the constant of E_3 with the wrong sign (-1/2 for +1/2); here it is k-diffusion's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Stage
from fewstep.solvers.dpm_multistep import Multistep, Rule, difference_weights
from fewstep.solvers.exponential import Step, phi


def decay(path: Path, t: Tensor, s: Tensor, power: float) -> Tensor:
    """e^(-power h), elementwise; finite at both singular ends."""
    (at, _, st), (as_, _, ss) = path.schedule(t), path.schedule(s)
    return (at * ss / (as_ * st)) ** power


@dataclass(frozen=True)
class DPMMultistepSDE(Multistep):
    """Stochastic multistep. The first six arguments are those of `Multistep`.

    Args:
        eta: 0 deterministic, 1 the reverse SDE.
        s_noise: multiplies the fresh noise (1 keeps the marginal).
    """

    eta: float = 1.0
    s_noise: float = 1.0

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the moments of the marginal: second at most, with either second difference."""
        return min(super().order, 2) if self.eta else super().order

    def weights(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        step, (at, _, _), (as_, _, _) = Step(path, t, s, self.uses), path.schedule(t), path.schedule(s)
        if self.uses == "x0":
            c_x, g = step.c_x * decay(path, t, s, self.eta), (1 + self.eta) * step.h
            moments = as_ - at * c_x, as_ * g * phi(2, -g), as_ * g * phi(3, -g)
        else:
            c_x, gain = step.c_x, 1 + self.eta
            moments = gain * step.first, gain * step.moment(2), gain * step.moment(3)
        return c_x, difference_weights(moments, *self.ratios(path, t, step.h, past), self.rule, self.variant)

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        (stage,), ss = super().stages(path, t, s, past), path.schedule(s)[2]
        if self.uses == "x0":
            variance = ss**2 * (1 - decay(path, t, s, 2 * self.eta))
        else:
            variance = self.eta * ss**2 * (1 / decay(path, t, s, 2.0) - 1)
        return (stage._replace(noise=self.s_noise * variance.clamp(min=0).sqrt()),)

    def regular(self, path: Path, t: Tensor, s: Tensor, stages: int) -> Tensor:
        """In noise form a step into s = 0 would end with noise a_s s_t/a_t: it is the first-order one instead."""
        ok = super().regular(path, t, s, stages)
        return ok & (path.schedule(s)[2] != 0) if self.uses == "eps" else ok


@dataclass(frozen=True)
class DPMpp2MSDE(DPMMultistepSDE):
    """SDE-DPM-Solver++(2M): `rule` midpoint or taylor (k-diffusion's "heun")."""


@dataclass(frozen=True)
class DPMpp3MSDE(DPMMultistepSDE):
    """k-diffusion's 3M SDE: its second step is the taylor rule."""

    k: int = 3
    rule: Rule = "taylor"
