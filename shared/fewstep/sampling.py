"""The one sampling loop: a denoiser, a start, a path, a solver and a time grid."""

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from fewstep.denoiser import Bound, Denoise, tabulate
from fewstep.estimate import Estimate
from fewstep.paths import Path
from fewstep.prediction import Prediction
from fewstep.solvers.base import Row, Solver, State, advance


class Callback:
    """Progress bars, previews, thresholding, early stops, trajectory capture: override what is needed."""

    def on_estimate(self, x: Tensor, estimate: Estimate, row: Row) -> Estimate:
        """Replace or look at the estimate of state x: (B, ...) before it is used."""
        return estimate

    def on_step(self, x: Tensor, done: int, total: int, row: Row) -> bool:
        """After each finished step with x at time row.s; return True to stop early."""
        return False


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
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"a grid is (n + 1,) times with n >= 1, got shape {tuple(grid.shape)}")
    rows, callbacks = solver.plan(path, grid), tuple(callbacks)
    keep = max(len(r.x) for r in rows), max(len(r.e) for r in rows)
    if isinstance(denoise, Bound) and denoise.y is None and y is None and not callbacks:
        return _folded(denoise, x, solver, rows, keep, generator)
    if hasattr(denoise, "prepare"):
        denoise.prepare(_times(rows), x)  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    shift = _Shift(path, rows, y)
    state, done, total = State((shift.remove(x, rows[0].t),)), 0, sum(r.last for r in rows)
    for row in rows:
        at = shift.add(state.xs[0], row.t)
        estimate = denoise(at, row.t)
        for callback in callbacks:
            estimate = callback.on_estimate(at, estimate, row)
        noise = None if row.noise == 0.0 else _randn_like(x, generator)
        state = advance(state, estimate.x0 if solver.uses == "x0" else estimate.eps, row, noise, keep)
        done += row.last
        if row.last and callbacks:
            now = shift.add(state.xs[0], row.s)
            stops = [callback.on_step(now, done, total, row) for callback in callbacks]
            if any(stops):
                return now
    return shift.add(state.xs[0], rows[-1].s)


def _folded(
    denoise: Bound,
    x: Tensor,
    solver: Solver,
    rows: tuple[Row, ...],
    keep: tuple[int, int],
    generator: torch.Generator | None,
) -> Tensor:
    """The loop over raw network outputs, for plain denoisers without anchor: no conversion is left per step."""
    denoise.prepare(_times(rows), x)
    rows = fold(rows, denoise.denoiser.path, denoise.denoiser.prediction, solver.uses)
    keep, state = (max(keep), keep[1]), State((x,))
    for row, call in zip(rows, denoise.calls(_times(rows)), strict=True):
        noise = None if row.noise == 0.0 else _randn_like(x, generator)
        state = advance(state, call(state.xs[0]), row, noise, keep)
    return state.xs[0]


@lru_cache(maxsize=256)
def fold(rows: tuple[Row, ...], path: Path, prediction: Prediction, uses: str) -> tuple[Row, ...]:
    """The same plan over (states, network outputs): E_j = A_j X_j + B_j out_j was evaluated at the j-th last state X_j.

    sum_j c_j X_j + sum_j w_j E_j  =  sum_j (c_j + w_j A_j) X_j + sum_j w_j B_j out_j
    """
    table = tabulate(path, prediction, _times(rows))
    folded = []
    for n, row in enumerate(rows):
        c = list(row.x) + [0.0] * (len(row.e) - len(row.x))
        outs = []
        for j, w in enumerate(row.e):
            a, b, _ = getattr(table[rows[n - j].t], uses)
            c[j] += w * a
            outs.append(w * b)
        folded.append(row._replace(x=tuple(c), e=tuple(outs)))
    return tuple(folded)


def _times(rows: tuple[Row, ...]) -> tuple[float, ...]:
    return tuple(r.t for r in rows)


class _Shift:
    """x = z + b y: the anchor is removed before a solver's step and added for the network."""

    def __init__(self, path: Path, rows: tuple[Row, ...], y: Tensor | None) -> None:
        self.y = y
        if y is not None:
            times = torch.tensor([v for r in rows for v in (r.t, r.s)], dtype=torch.float64)
            self.b = dict(zip(times.tolist(), path.schedule(times)[1].tolist(), strict=True))

    def add(self, z: Tensor, t: float) -> Tensor:
        if self.y is None or self.b[t] == 0.0:
            return z
        return torch.add(z, self.y, alpha=self.b[t])

    def remove(self, x: Tensor, t: float) -> Tensor:
        return x if self.y is None else torch.sub(x, self.y, alpha=self.b[t])


def _randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise drawn where the generator lives, so that a CPU seed gives the same noise on every device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)
