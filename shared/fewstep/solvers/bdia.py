"""BDIA (arXiv:2307.10829): a DDIM sampler that can be run backwards exactly. 1 NFE per step.

With the DDIM step F(z; t -> s) = (s_s/s_t) z + (a_s - a_t s_s/s_t) x0, which can lead either way, and p before t:

    z_s = F(z_t; t -> s) + gamma (z_p - F(z_t; t -> p)),     the first step is F alone
    z_p = F(z_t; t -> p) + (z_s - F(z_t; t -> s)) / gamma

so the inverse of BDIA(gamma) is BDIA(1/gamma) on the reversed grid. Rounding errors grow by 1/gamma per inverted step:
keep states in float64. gamma = 1 (editing) is a leapfrog of second order; gamma < 1 (.5 in the paper's text-to-image
samples) damps it, at first order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.paths import Path
from fewstep.solvers.base import Row, Solver, Stage, State, advance, data_form

# Largest growth of rounding errors that an inversion accepts: float64 then keeps about nine digits.
GROWTH = 1e6


@dataclass(frozen=True)
class BDIA(Solver):
    """gamma in [0, 1]: 0 is DDIM, 1 is exactly reversible without growth; above 1 only as the inverse of another."""

    past = 1

    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"BDIA: gamma is at least 0, got {self.gamma}")

    @property
    def order(self) -> int:
        return 2 if self.gamma == 1 else 1

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        (x, e), (x_back, e_back) = data_form(path, t, s), data_form(path, t, past[0])
        gamma = self.gamma * (~past[0].isnan()).to(x)
        x = x - gamma * x_back.nan_to_num(0.0)
        return (Stage(t, (x, gamma), (e - gamma * e_back.nan_to_num(0.0),)),)


def invert(
    denoise: Denoise,
    x: Tensor,
    path: Path,
    solver: BDIA,
    grid: Tensor,
    y: Tensor | None = None,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The states at grid[0] and grid[1] from which `solver` reaches x at grid[-1].

    Args:
        x: (B, ...) the state at grid[-1]: a sample of `solver`, or a real one.
        grid: (n + 1,) decreasing times, n >= 2.
        before: (B, ...) the state at grid[-2]. With it the inversion is exact, and starts at clean data if need be. A
        real
            sample has none: one DDIM step from x to grid[-2] stands in, for which s(grid[-1]) > 0; `resume` then gives
            exactly x again.
    Returns:
        Two (B, ...). The first alone gives the trajectory back only if its first step was DDIM's, as in `sample`.
    Raises:
        ValueError: where rounding errors would grow by more than GROWTH, or the DDIM step would start from clean data.
    """
    growth = solver.gamma ** (2 - len(grid)) if solver.gamma else float("inf")
    if growth > GROWTH:
        raise ValueError(
            f"inverting {len(grid) - 1} steps of BDIA({solver.gamma}) multiplies rounding errors by {growth:.1g}, "
            f"more than {GROWTH:.0e}: use gamma nearer to 1 or fewer steps"
        )
    if before is None and path.schedule(grid[-1:])[2].item() == 0:
        raise ValueError(
            f"a DDIM step out of clean data (t = {grid[-1]:g}) is undefined: end the grid at s > 0 or give `before`"
        )
    states = (x,) if before is None else (before, x)
    return _run(denoise, states, path, BDIA(1 / solver.gamma), grid.flip(0), y)


def resume(
    denoise: Denoise, pair: tuple[Tensor, Tensor], path: Path, solver: BDIA, grid: Tensor, y: Tensor | None = None
) -> Tensor:
    """The state at grid[-1] from the pair of states at grid[0] and grid[1] that `invert` found."""
    return _run(denoise, (pair[1], pair[0]), path, solver, grid, y)[0]


def _run(
    denoise: Denoise, states: tuple[Tensor, ...], path: Path, solver: BDIA, times: Tensor, y: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The last two states, newest first, from one state at times[0] or from those at times[1] and times[0]."""
    times = times.detach().double()
    if len(times) < 3:
        raise ValueError(f"two states are found or used on grids of at least 2 steps, got {len(times) - 1}")
    shift = [0.0] * len(times) if y is None else path.schedule(times)[1].tolist()

    def moved(v: Tensor, by: float) -> Tensor:
        return v if y is None else v + by * y

    rows: list[Row] = list(solver.rows(path, times))[len(states) - 1 :]
    last = len(states) - 1
    state = State(tuple(moved(v, -shift[last - k]) for k, v in enumerate(states)))
    for i, row in enumerate(rows, last):
        estimate = denoise(moved(state.xs[0], shift[i]), row.t)
        state = advance(state, estimate, row, None, (2, 1))
    return moved(state.xs[0], shift[-1]), moved(state.xs[1], shift[-2])
