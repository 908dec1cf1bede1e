"""Recorded trajectories of a teacher: the states and estimates of a fine solver at every node of its grid."""

from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.paths import Path
from fewstep.sampling import Callback, sample
from fewstep.search.starts import Starts
from fewstep.solvers.base import Row, Solver


class Trajectory(NamedTuple):
    """Of one batch: grid (n + 1,), n + 1 states and the n estimates at the first n of them, each (B, ...).

    States are without the anchor, z = x - b y.
    """

    starts: Starts
    grid: Tensor
    states: list[Tensor]
    estimates: list[Estimate]


@torch.no_grad()
def record(starts: Starts, path: Path, solver: Solver, grid: Tensor) -> Trajectory:
    """Run a solver of one evaluation per step and keep everything."""
    kept = _Keep()
    sample(starts.denoise, starts.x, path, solver, grid, starts.y, callbacks=[kept])
    states = [starts.x, *kept.states]
    if starts.y is not None:
        b = path.schedule(grid)[1].tolist()
        states = [x - v * starts.y for x, v in zip(states, b, strict=True)]
    return Trajectory(starts, grid, states, kept.estimates)


class _Keep(Callback):
    def __init__(self) -> None:
        self.states: list[Tensor] = []
        self.estimates: list[Estimate] = []

    def on_estimate(self, x: Tensor, estimate: Estimate, row: Row) -> Estimate:
        self.estimates.append(estimate)
        return estimate

    def on_step(self, x: Tensor, done: int, total: int, row: Row) -> bool:
        self.states.append(x.clone())
        return False
