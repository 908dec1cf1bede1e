"""What a search is given: starting states, where the probability-flow ODE takes each of them, and the denoiser that does it.

error of a solver = root mean square over coordinates and starts of (its end point - the reference end point)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.paths import Path
from fewstep.sampling import sample
from fewstep.solvers.base import Solver
from fewstep.solvers.schedule import SolverSchedule

# Beyond these levels of lambda = log(a/s) one first-order step is exact to about 1e-6, so no finer grid is spent on them.
LEVELS = (-6.0, 7.0)

# (done, total, figure) of a long search, for a progress bar.
Progress = Callable[[int, int, float], None]


class Starts(NamedTuple):
    """A batch: the denoiser bound to its conditions, states x (B, ...) at the path's t_max, their end points, and the anchor."""

    denoise: Denoise
    x: Tensor
    target: Tensor
    y: Tensor | None = None


def reference(
    denoise: Denoise, x: Tensor, path: Path, y: Tensor | None = None, steps: int = 100, clean: float | None = None
) -> Starts:
    """The starts x with the end points of a fine solver: UniPC-3 on `early_grid`, error O(steps^-3).

    Args:
        denoise: with guidance, conditions and anchor bound.
        x: (B, ...) at t_max, usually `path.start(noise, y)`.
        clean: see `span`.
    """
    grid = early_grid(path, steps, clean)
    with torch.no_grad():
        target = sample(denoise, x, path, SolverSchedule.unipc(grid, 3, "exact"), grid, y)
    return Starts(denoise, x, target, y)


def span(path: Path, clean: float | None = None) -> tuple[float, float]:
    """(lambda at the noisy end, lambda at the last time the denoiser is called), both within LEVELS.

    clean: that last time. Where not given it is the path's clean end or, on a path of step indices (whose networks never saw a time
    below the first index), index 0.
    """
    last = clean if clean is not None else 0.0 if path.t_min == -1.0 else path.t_min
    lam = path.log_snr(torch.tensor([path.t_max, last], dtype=torch.float64))
    return max(lam[0].item(), LEVELS[0]), min(lam[1].item(), LEVELS[1])


def fine_grid(path: Path, steps: int, clean: float | None = None) -> Tensor:
    """Even steps in lambda over `span`, and the steps to the ends of the path: (steps + 1,) times."""
    hi, lo = span(path, clean)
    return levels_grid(path, torch.linspace(hi, lo, max(steps, 1), dtype=torch.float64))


def early_grid(path: Path, steps: int, clean: float | None = None) -> Tensor:
    """As `fine_grid`, with lambda_i = lambda_0 + (lambda_n - lambda_0) (i/n)^1.5: what a teacher is followed on.

    Steps are shortest at the noisy end, where a start chooses its mode: in 3072-d, cfg 7.5 a hundred even ones end .074 off, these .0008.
    """
    hi, lo = span(path, clean)
    return levels_grid(path, hi + (lo - hi) * torch.linspace(0, 1, max(steps, 1), dtype=torch.float64) ** 1.5)


def levels_grid(path: Path, lam: Tensor) -> Tensor:
    """The times of rising levels lam: (n,), the first moved to t_max, then the clean end: (n + 1,)."""
    t = path.time_of_log_snr(lam)
    t[0] = path.t_max
    return torch.cat([t, torch.tensor([path.t_min], dtype=torch.float64)])


@torch.no_grad()
def error(solver: Solver, path: Path, grid: Tensor, starts: Sequence[Starts]) -> float:
    """Root mean square distance to the reference over all starts; inf where the solver's result is not finite."""
    total, count = 0.0, 0
    for part in starts:
        gap = sample(part.denoise, part.x, path, solver, grid, part.y) - part.target
        total, count = total + gap.double().square().sum().item(), count + gap.numel()
    return (total / count) ** 0.5 if total < float("inf") else float("inf")


@torch.no_grad()
def hardest(starts: Starts, path: Path, solvers: Sequence[tuple[Solver, Tensor]], count: int) -> Tensor:
    """Indices of the `count` starts that the worst of some solvers, each on its grid, takes farthest from the reference; (count,).

    They are those near a border between modes. A fit to random starts hardly sees them, and a few in a thousand that end in the wrong
    mode rule the mean error.
    """
    x, y = starts.x, starts.y
    gaps = [(sample(starts.denoise, x, path, s, grid, y) - starts.target).flatten(1).norm(dim=1) for s, grid in solvers]
    return torch.stack(gaps).nan_to_num(nan=0.0).amax(0).topk(count).indices


def taken(starts: Starts, index: Tensor) -> Starts:
    """Some of the starts of a batch, for a denoiser without conditions."""
    return Starts(starts.denoise, starts.x[index], starts.target[index], None if starts.y is None else starts.y[index])


def joined(a: Starts, b: Starts) -> Starts:
    """Two batches of one denoiser without conditions as one."""
    y = None if a.y is None or b.y is None else torch.cat([a.y, b.y])
    return Starts(a.denoise, torch.cat([a.x, b.x]), torch.cat([a.target, b.target]), y)
