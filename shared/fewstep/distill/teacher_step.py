"""The teacher's ODE (or SDE) step inside a loss, at per-sample times: x_t -> x_s."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.paths import Path
from fewstep.per_sample import sample_each
from fewstep.solvers import DDIM
from fewstep.solvers.base import Solver


@dataclass(frozen=True)
class TeacherStep:
    """k steps of a solver from t to s, even in t, without gradient.

    DDIM is Euler's method in x/a against s/a; Heun costs two evaluations; Ancestral and GammaSampling are SDE steps.
    """

    solver: Solver = field(default_factory=DDIM)
    substeps: int = 1

    @torch.no_grad()
    def __call__(
        self, teacher: Denoise, path: Path, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None = None
    ) -> Tensor:
        """x: (B, ...) at times t: (B,) -> (B, ...) at times s <= t: (B,). Noise comes from the global generator."""
        share = torch.arange(self.substeps + 1, dtype=torch.float64, device=t.device) / self.substeps
        grids = t.double()[:, None] + (s.double() - t.double())[:, None] * share
        return sample_each(teacher, x, path, self.solver, grids, y)
