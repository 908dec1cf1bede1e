"""The linear multistep sampler of k-diffusion and diffusers: Adams-Bashforth on any grid of rho = s/a. 1 NFE per step.

    z_s = z_t + sum_j C_j eps_j,     C_j = INT ell_j(rho) drho,     z = x/a

It is deis_rho (deis.py) under the name and the count it is known by.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Solver, Stage
from fewstep.solvers.deis import DEIS


@dataclass(frozen=True)
class LMS(Solver):
    """Through `order` estimates, fewer in the first steps; into s = 0 as everywhere else."""

    uses = "eps"

    order: int = 4

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ValueError(f"LMS combines at least 1 estimate, not {self.order}")

    @property
    def past(self) -> int:
        return self.order - 1

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        return DEIS(self.order - 1, "rho").stages(path, t, s, past)
