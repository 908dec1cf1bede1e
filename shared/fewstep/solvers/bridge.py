"""Stochastic and published starts of bridges: at their noisy end a = s = 0, the state is the anchor and holds no eps.

Schroedinger bridges (SB-VE, arXiv:2407.16074) and two-sided stochastic interpolants begin so. The limit of the first
step is

    x_s = a_s x0 + b_s y + eta s_s xi,     x0 estimated from y alone

Solvers take it with eta = 0 by themselves, which is right for ODEs: SB-ODE of the papers is `DDIM()`. A stochastic
solver needs the noise: SB-SDE is `BridgeStart(Ancestral())`, since on the SB-VE path the bridge posterior

    x_s = (S_s^2/S_t^2) x_t + (1 - S_s^2/S_t^2) x0 + S_s sqrt(1 - S_s^2/S_t^2) xi

is the Markov posterior of the centred variable: rho = S S_T / sqrt(S_T^2 - S^2) gives
s_s^2 (1 - rho_s^2/rho_t^2) = S_s^2 (1 - S_s^2/S_t^2).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.paths.sbve import SBVE
from fewstep.solvers.base import Row
from fewstep.solvers.wrapper import SolverWrapper


@dataclass(frozen=True)
class BridgeStart(SolverWrapper):
    """Any solver, its step out of a = s = 0 replaced by the one above; on other grids it is `solver` itself.

    eta: fresh noise of the first step in units of s_s, 1 for solvers that keep the marginal.
    official: the first step of the published SB-ODE code, x_s = a_s x0 + (b_s + s_s (1 - 1/S_T)) y: two weights of
        opposite sign around 4400 meet a regulariser of 1e-8, and what is left does not vanish with it. SB-VE alone,
        with eta = 0.
    """

    eta: float = 1.0
    official: bool = False

    def rows(self, path: Path, grid: Tensor) -> Iterable[Row]:
        rows = iter(self.solver.rows(path, grid))
        (a, a_next), _, (s, s_next) = (v.tolist() for v in path.schedule(grid[:2]))
        if a == s == 0.0:
            while not next(rows).last:
                pass
            y = s_next * self._bias(path) if self.official else 0.0
            yield Row(grid[0].item(), grid[1].item(), (0.0,), (a_next,), self.eta * s_next, y=y)
        yield from rows

    def _bias(self, path: Path) -> float:
        """1 - 1/S_T."""
        if not isinstance(path, SBVE):
            raise ValueError(  # noqa: TRY004 (a wrong choice of path, as all solvers report it)
                f"official=True reproduces the code of SB-VE, not of {type(path).__name__}"
            )
        return 1 - 1 / math.sqrt(path.s2(torch.tensor(1.0, dtype=torch.float64)).item())
