"""Euler steps of IR-SDE (arXiv:2301.11699) at its own indices: what the published code runs, 100 steps of 1 NFE.

    reverse SDE, eta = 1   x_{i-1} = x_i - (theta_i (y - x_i) - sigma_i^2 score) dt + sigma_i sqrt(dt) xi
    reverse ODE, eta = 0   the same with sigma_i^2/2 and no noise                      eta of OwnDiffusion

They are `EulerMaruyama` with theta_i, the rate of the interval below i, where the path has a kink. Steps over k indices
use theta_i k dt. The published posterior step is `Ancestral()`, and the solvers of VP paths (MRS, arXiv:2502.07856)
need no class of their own either: on this path z = x - y is a rescaled VP state.
"""

from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.paths.base import Triple
from fewstep.paths.mean_reverting import MeanReverting
from fewstep.solvers.euler_maruyama import EulerMaruyama


@dataclass(frozen=True)
class MeanRevertingEuler(EulerMaruyama):
    """Euler steps from integer indices of a MeanReverting path."""

    def rates(self, path: Path, t: Tensor) -> Triple:
        if not isinstance(path, MeanReverting):
            raise ValueError(  # noqa: TRY004 (a wrong choice of path, as all solvers report it)
                f"MeanRevertingEuler runs on MeanReverting paths, not on {type(path).__name__}"
            )
        if not (t.isnan() | (t == t.round())).all():
            raise ValueError(f"MeanRevertingEuler starts its steps at integer indices, not at {t.tolist()}")
        a, _, s = path.schedule(t)
        da = -a * path.dt * path.theta(t.nan_to_num(0.0))
        return da, -da, -(path.sigma_max**2) * a * da / s
