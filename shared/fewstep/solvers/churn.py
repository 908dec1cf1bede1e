"""EDM's stochastic sampler (arXiv:2206.00364, algorithm 2): raise the noise before every step of a one-step solver.

    gamma = min(s_churn / n, sqrt(2) - 1) where s_min <= rho_t <= s_max, else 0;     rho = s/a, n steps
    rho^ = (1 + gamma) rho_t,     z^ = (a^/a_t) z_t + a^ s_noise sqrt(rho^^2 - rho_t^2) xi,     then a step from t^ to s

No evaluation is added: 2n - 1 for Heun. On any path the raised level has its own time t^, at most t_max, above which no
network was trained (the official code has no such limit).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Row, Solver
from fewstep.solvers.heun import Heun
from fewstep.solvers.wrapper import SolverWrapper


@dataclass(frozen=True)
class Churn(SolverWrapper):
    """solver: without a past, Heun in EDM. Defaults are the paper's for ImageNet-64; s_min and s_max are values of rho.

    `stages`, which does not know how many steps there are, is the step without churn.
    """

    solver: Solver = field(default_factory=Heun)
    s_churn: float = 40.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003

    def __post_init__(self) -> None:
        if self.solver.past:
            raise ValueError(f"Churn moves the start of every step, which {type(self.solver).__name__} looks back at")

    def rows(self, path: Path, grid: Tensor) -> Iterator[Row]:
        gamma = min(self.s_churn / (len(grid) - 1), math.sqrt(2) - 1)
        a, _, s = path.schedule(grid[:-1])
        rho = s / a
        churned = (rho >= self.s_min) & (rho <= self.s_max) & rho.isfinite() & (gamma > 0)
        raised = path.time_of_log_snr(-((1 + gamma) * rho).log()).clamp(max=path.t_max)
        start = torch.where(churned, raised, grid[:-1])
        up, _, noisy = path.schedule(start)
        noise = self.s_noise * up * ((noisy / up) ** 2 - rho**2).clamp(min=0).sqrt()
        for i, row in enumerate(zip(grid.tolist(), (up / a).tolist(), noise.tolist(), strict=False)):
            if churned[i]:
                yield Row(row[0], grid[i + 1].item(), (row[1],), (), row[2], last=False)
            yield from self.solver.rows(path, torch.stack([start[i], grid[i + 1]]))
