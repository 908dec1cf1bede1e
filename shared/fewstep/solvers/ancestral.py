"""Stochastic first-order steps: DDIM with fresh noise of variance v (arXiv:2010.02502, eq. 12). 1 NFE per step.

    z_s = a_s x0 + sqrt(s_s^2 - v) eps + sqrt(v) xi,     eps = (z_t - a_t x0)/s_t

Which v is the path's own chain decides the class: the marginals alone do not. A v above s_s^2 counts as s_s^2 (all noise fresh).
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Row, Solver, Stage
from fewstep.solvers.wrapper import SolverWrapper


@dataclass(frozen=True)
class NoisySolver(Solver):
    """Writes `variance`; order 1 in its deterministic limit v = 0."""

    order = 1

    @abstractmethod
    def variance(self, at: Tensor, st: Tensor, as_: Tensor, ss: Tensor) -> Tensor:
        """v in [0, s_s^2], elementwise."""

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        (at, _, st), (as_, _, ss) = path.schedule(t), path.schedule(s)
        v = torch.minimum(self.variance(at, st, as_, ss), ss**2)
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


@dataclass(frozen=True)
class ExponentialAncestral(NoisySolver):
    """SDE-DPM-Solver++(1) (arXiv:2211.01095): v = s_s^2 (1 - e^(-2 eta h)), h = lambda_s - lambda_t.

    z_s = (s_s/s_t) e^(-eta h) z_t + a_s (1 - e^(-(1 + eta) h)) x0 + sqrt(v) xi; equals `Ancestral` at eta = 0 and 1 only.
    """

    eta: float = 1.0

    def variance(self, at: Tensor, st: Tensor, as_: Tensor, ss: Tensor) -> Tensor:
        return ss**2 * (1 - (at * ss / (as_ * st)) ** (2 * self.eta))


def downstep(path: Path, t: Tensor, s: Tensor, eta: float, last: Tensor | None = None) -> Tensor:
    """The time d cleaner than s from which noise of the posterior's variance leads back to s, elementwise; NaN for s noisier than t.

    rho_d^2 = rho_s^2 - min(rho_s, eta rho_s sqrt(1 - (rho_s/rho_t)^2))^2, rho = s/a   (k-diffusion's sigma_down)

    last: d is no cleaner than this time.
    """
    if eta == 0:
        return s
    lam_t, lam_s = path.log_snr(t), path.log_snr(s)
    kept = (1 - eta**2 + eta**2 * (2 * (lam_t - lam_s)).exp()).clamp(min=0)  # rho_d^2 / rho_s^2
    d = path.time_of_log_snr(lam_s - torch.where(kept > 1, torch.nan, kept).log() / 2)
    return d if last is None else torch.where(path.log_snr(d) > path.log_snr(last), last, d)


def renoise(path: Path, stage: Stage, d: Tensor, s: Tensor, s_noise: float) -> Stage:
    """The stage that ends at time d, followed by noise up to time s: z_s = (a_s/a_d) z_d + s_noise sqrt(s_s^2 - (a_s s_d/a_d)^2) xi."""
    (ad, _, sd), (as_, _, ss) = path.schedule(d), path.schedule(s)
    up = as_ / ad
    noise = s_noise * (ss**2 - (up * sd) ** 2).clamp(min=0).sqrt()
    return Stage(stage.t, tuple(up * w for w in stage.x), tuple(up * w for w in stage.e), noise)


@dataclass(frozen=True)
class Renoised(SolverWrapper):
    """A deterministic solver made ancestral: each step runs past its end s to the cleaner time d of `downstep`, then noise is added.

    Renoised(DDIM()) is `Ancestral`; k-diffusion's dpmpp_2s_ancestral and dpm_2_ancestral are the steps of DPM-Solver++(2S) and
    DPM-Solver-2 run in this way. Both ways lead to the marginal, so a singlestep solver keeps its order in the moments; a multistep one,
    whose earlier estimates do not know the noise added since, falls to the first.

    Args:
        solver: the deterministic solver, of any number of stages and past times; it is run by its `stages`.
        eta: 0 deterministic, 1 the posterior of the path's SDE.
        s_noise: multiplies the fresh noise (1 keeps the marginal).
    """

    eta: float = 1.0
    s_noise: float = 1.0

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 if self.past and self.eta else self.solver.order

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        d = downstep(path, t, s, self.eta)
        *stages, final = self.solver.stages(path, t, d, past)
        if final.noise is not None:
            raise ValueError(
                f"Renoised adds the noise to a deterministic solver; {type(self.solver).__name__} has its own"
            )
        return *stages, renoise(path, final, d, s, self.s_noise)

    def regular(self, path: Path, t: Tensor, s: Tensor, stages: int) -> Tensor:
        return self.solver.regular(path, t, downstep(path, t, s, self.eta), stages)

    def rows(self, path: Path, grid: Tensor) -> Iterator[Row]:
        """As `Solver.rows`, but a first-order step in place of a singular one keeps its noise."""
        plain = iter(Ancestral(self.eta).rows(path, grid))
        for row in super().rows(path, grid):
            if row.last:
                first = next(plain)
                noise = self.s_noise * first.noise
                row = first._replace(noise=noise) if row.noise == 0.0 and noise != 0.0 else row
            yield row
