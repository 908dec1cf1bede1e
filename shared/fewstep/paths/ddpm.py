"""The discrete DDPM process (arXiv:2006.11239) as a path: t is the step index.

a(n) = sqrt(prod_{i <= n} (1 - beta_i)),  n = 0 .. N-1,  a(-1) = 1 (clean),   s = sqrt(1 - a^2)
log a is piecewise linear in t between the indices. Other tables of betas: `IndexedVP` (tabulated.py).
"""

from dataclasses import dataclass

from torch import Tensor

from fewstep.paths.betas import LinearBetas, ScaledLinearBetas
from fewstep.paths.tabulated import Indexed


@dataclass(frozen=True)
class DDPM(Indexed):
    """Table of betas: `linear` between beta_start and beta_end, or `scaled_linear` (linear in sqrt(beta), Stable Diffusion).

    t is in [-1, steps - 1]: -1 is clean data, steps - 1 the noisiest index; networks are given this index.
    """

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    scaled: bool = False

    def table(self) -> Tensor:
        kind = ScaledLinearBetas if self.scaled else LinearBetas
        return kind(self.steps, self.beta_start, self.beta_end)()
