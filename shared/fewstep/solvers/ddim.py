"""DDIM (arXiv:2010.02502): keep x0 and eps over the step. 1 NFE per step.

    z_s = a_s x0 + s_s eps = (s_s / s_t) z_t + (a_s - a_t s_s / s_t) x0

The same step is DPM-Solver-1, DPM-Solver++(1), DEIS of order 0, Euler in z/a over rho, and Euler on a rectified flow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import LinearSolver, data_form


@dataclass(frozen=True)
class DDIM(LinearSolver):
    """First order; finite at both singular ends (a_t = 0 and s_s = 0), and where a bridge starts without noise (a_t = s_t = 0)."""

    order = 1

    def weights(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        c_x, gain = data_form(path, t, s)
        return c_x, (gain,)
