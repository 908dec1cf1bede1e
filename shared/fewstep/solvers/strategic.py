"""Strategic stochastic sampling of TCD (arXiv:2402.19159): DDIM to the time u = (1 - gamma) s, then noise up to s.

    z_s = (a_s / a_u) (a_u x0 + s_u eps) + sqrt(s_s^2 - (a_s s_u / a_u)^2) xi

gamma = 0 is DDIM, gamma = 1 is multistep consistency sampling. Here gamma scales times, in `GammaSampling` it scales
levels. Times are counted from the clean end of the path: u = t_min + (1 - gamma)(s - t_min). diffusers counts its
integer labels from 0, whose level is not quite clean, and floors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Solver, Stage


@dataclass(frozen=True)
class StrategicSampling(Solver):
    """gamma in [0, 1]. 1 NFE per step, finite at both singular ends."""

    order = 1

    gamma: float = 0.3

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma is {self.gamma}; allowed: 0 (deterministic) to 1 (all noise is fresh)")

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        u = path.t_min + (1 - self.gamma) * (s - path.t_min)
        (at, _, st), (as_, _, ss), (au, _, su) = path.schedule(t), path.schedule(s), path.schedule(u)
        kept = as_ * su / au
        return (Stage(t, (kept / st,), (as_ - at * kept / st,), (ss**2 - kept**2).clamp(min=0).sqrt()),)
