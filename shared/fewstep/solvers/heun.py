"""Heun's method of EDM (arXiv:2206.00364, algorithm 1) on any path: the trapezoidal rule for dz/drho = eps. 2 NFE per step.

z = x/a, rho = s/a, k = (rho_s - rho_t)/2
stage 1   z_p = z_t + 2 k eps_t                                    (DDIM)
stage 2   z_s = z_t + k (eps_t + eps_p),     eps = (z - x0)/rho
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Solver, Stage


@dataclass(frozen=True)
class Heun(Solver):
    """Second order; a step into s = 0 or out of a = 0 is a DDIM step of one evaluation, as in EDM (2n - 1 evaluations)."""

    order = 2

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        (at, _, st), (as_, _, ss) = path.schedule(t), path.schedule(s)
        predict = Stage(t, (ss / st,), (as_ - at * ss / st,))
        ratio = (ss * at) / (st * as_)  # rho_s / rho_t
        # With x0 as the estimate: k/rho_t = (ratio - 1)/2 and k/rho_s = (1 - 1/ratio)/2.
        kt, ks = (ratio - 1) / 2, (1 - 1 / ratio) / 2
        x = (ks, as_ / at * (1 + kt))  # newest first: z_p (already scaled by a_s), then z_t
        e = (-as_ * ks, -as_ * kt)
        return predict, Stage(s, x, e)
