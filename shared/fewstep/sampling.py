"""The one sampling loop: a denoiser, a start, a path, a solver and a time grid."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.estimate import Estimate
from fewstep.paths import Path
from fewstep.solvers.base import Row, Solver, State, advance


class Callback:
    """Progress bars, previews, thresholding, early stops, trajectory capture: override what is needed."""

    def on_estimate(self, x: Tensor, estimate: Estimate, row: Row) -> Estimate:
        """Replace or look at the estimate of state x: (B, ...) before it is used."""
        return estimate

    def on_step(self, x: Tensor, done: int, total: int, row: Row) -> bool:
        """After each finished step with x at time row.s; return True to stop early."""
        return False


class Preparable(Protocol):
    """Denoisers that can tabulate a grid's scalars beforehand (see denoiser.Bound)."""

    def prepare(self, times: Iterable[float], x: Tensor) -> None: ...


def sample(
    denoise: Denoise,
    x: Tensor,
    path: Path,
    solver: Solver,
    grid: Tensor,
    y: Tensor | None = None,
    generator: torch.Generator | None = None,
    callbacks: Iterable[Callback] = (),
) -> Tensor:
    """Integrate from x at time grid[0] to grid[-1].

    Args:
        denoise: (x_t, t) -> Estimate; conditions, anchor and guidance are already bound.
        x: (B, ...) the state at grid[0], usually `path.start(noise, y)`.
        grid: (n + 1,) decreasing times.
        y: (B, ...) the anchor, on anchored paths; solvers see z = x - b y.
        generator: source of the noise of stochastic solvers, on the CPU or on x's device.
        callbacks: see `Callback`.
    Returns:
        (B, ...) the state at grid[-1].
    Raises:
        ValueError: where the solver has no finite weights on this grid.
    """
    rows = solver.plan(path, grid)
    if hasattr(denoise, "prepare"):
        denoise.prepare([row.t for row in rows], x)  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    keep = max(len(r.x) for r in rows), max(len(r.e) for r in rows)
    uses, callbacks, total = solver.uses, tuple(callbacks), sum(r.last for r in rows)
    shift = None if y is None else _shifts(path, rows, grid)
    state, done = State((x if shift is None else torch.sub(x, y, alpha=shift[grid[0].item()]),)), 0  # pyright: ignore
    for row in rows:
        at = state.xs[0] if shift is None else torch.add(state.xs[0], y, alpha=shift[row.t])  # pyright: ignore
        estimate = denoise(at, row.t)
        for callback in callbacks:
            estimate = callback.on_estimate(at, estimate, row)
        noise = None if row.noise == 0.0 else _randn_like(x, generator)
        state = advance(state, estimate.x0 if uses == "x0" else estimate.eps, row, noise, keep)
        if row.last:
            done += 1
            if callbacks and _stop(callbacks, state, done, total, row, shift, y):
                break
    z = state.xs[0]
    return z if shift is None else torch.add(z, y, alpha=shift[row.s])  # pyright: ignore


def _shifts(path: Path, rows: list[Row], grid: Tensor) -> dict[float, float]:
    """b at every time of the plan."""
    times = torch.tensor(sorted({grid[0].item(), *(r.t for r in rows), *(r.s for r in rows)}), dtype=torch.float64)
    return dict(zip(times.tolist(), path.schedule(times)[1].tolist(), strict=True))


def _stop(
    callbacks: tuple[Callback, ...], state: State, done: int, total: int, row: Row, shift: dict[float, float] | None, y: Tensor | None
) -> bool:
    x = state.xs[0] if shift is None or y is None else torch.add(state.xs[0], y, alpha=shift[row.s])
    return any([callback.on_step(x, done, total, row) for callback in callbacks])


def _randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise drawn where the generator lives, so that a CPU seed gives the same noise on every device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)
