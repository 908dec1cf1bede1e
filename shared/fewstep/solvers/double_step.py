"""The stochastic sampler of guided distillation (arXiv:2210.03142): a DDIM step of double length, then noise for the second half of it.

    u = 2 s - t,    z_s = (a_s/a_u) (a_u x0 + s_u eps) + sqrt(s_s^2 - (a_s s_u/a_u)^2) xi

On an even grid u is the end of the next step. A step that would lead past the clean end of the path goes there; one that ends there adds
no noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.ancestral import renoise
from fewstep.solvers.base import Solver, Stage, data_form


@dataclass(frozen=True)
class DoubleStep(Solver):
    """1 NFE per step, finite at both singular ends; of order 1 in mean and variance."""

    order = 1

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        u = (2 * s - t).clamp(min=path.t_min)
        c_x, gain = data_form(path, t, u)
        return (renoise(path, Stage(t, (c_x,), (gain,)), u, s, 1.0),)
