"""The one sampling loop: a denoiser, a start, a path, a solver and a time grid."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser import Bound, Denoise, Scalars, tabulate
from fewstep.estimate import Estimate
from fewstep.nets.latent import latents_from
from fewstep.paths import Path
from fewstep.prediction import Prediction
from fewstep.solvers.base import Row, Solver, State, advance, reach

# Where fresh noise comes from: a torch generator, or a function of the row that asks for it.
Noise = torch.Generator | Callable[[Row], Tensor]


class Callback:
    """Progress bars, previews, early stops, trajectory capture: override what is needed."""

    def on_estimate(self, x: Tensor, estimate: Estimate, row: Row) -> Estimate:
        """Replace or look at the estimate of state x: (B, ...) at time row.t before it is used."""
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
    generator: Noise | None = None,
    callbacks: Iterable[Callback] = (),
) -> Tensor:
    """Integrate from x at time grid[0] to grid[-1].

    Args:
        denoise: (x_t, t) -> Estimate; conditions, anchor and guidance are already bound.
        x: (B, ...) the state at grid[0], usually `path.start(noise, y, grid[0])`; real or complex.
        grid: (n + 1,) decreasing times.
        y: (B, ...) the anchor, on anchored paths; solvers see z = x - b y.
        generator: source of the noise of stochastic solvers, and of networks' latents: a generator on the CPU or on x's device; or a function
            of the row, for the noise alone.
        callbacks: see `Callback`.
    Returns:
        (B, ...) the state at grid[-1].
    Raises:
        ValueError: where the solver has no finite weights on this grid.
    """
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"a grid is (n + 1,) times with n >= 1, got shape {tuple(grid.shape)}")
    rows, callbacks = solver.plan(path, grid), tuple(callbacks)
    if y is not None:
        rows = anchored(rows, path)
    with latents_from(generator):
        if isinstance(denoise, Bound) and denoise.y is y and not callbacks:
            return _folded(denoise, x, rows, y, generator)
        if hasattr(denoise, "prepare"):
            denoise.prepare(_times(rows), x)  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
        state, keep, done, total = State((x,)), reach(rows), 0, sum(r.last for r in rows)
        for row in rows:
            estimate = None
            if row.e:
                estimate = denoise(state.xs[0], row.t)
                for callback in callbacks:
                    estimate = callback.on_estimate(state.xs[0], estimate, row)
            state = advance(state, estimate, row, draw(x, row, generator), keep, y)
            done += row.last
            if row.last and callbacks:
                stops = [callback.on_step(state.xs[0], done, total, row) for callback in callbacks]
                if any(stops):
                    break
        return state.xs[0]


def _folded(denoise: Bound, x: Tensor, rows: tuple[Row, ...], y: Tensor | None, generator: Noise | None) -> Tensor:
    """The loop over raw network outputs, for plain denoisers: no conversion is left per step."""
    run = _compile(rows, denoise.denoiser.path, denoise.denoiser.prediction)
    state = State((x,))
    for row, k, label in zip(run.rows, run.scalars, denoise.labels(run.times, x), strict=True):
        out = denoise.call(state.xs[0], k, label) if row.e else None
        state = advance(state, out, row, draw(x, row, generator), run.keep, y)
    return state.xs[0]


class Run(NamedTuple):
    """A folded plan with all that its loop looks up: rows, their times and the denoiser's scalars, `reach` of the rows."""

    rows: tuple[Row, ...]
    times: tuple[float, ...]
    scalars: tuple[Scalars, ...]
    keep: tuple[int, int]


@lru_cache(maxsize=256)
def _compile(rows: tuple[Row, ...], path: Path, prediction: Prediction) -> Run:
    times, rows = _times(rows), fold(rows, path, prediction)
    table = tabulate(path, prediction, times)
    return Run(rows, times, tuple(table[t] for t in times), reach(rows))


@lru_cache(maxsize=256)
def anchored(rows: tuple[Row, ...], path: Path) -> tuple[Row, ...]:
    """The same plan over the states x = z + b y: x_s = sum_j c_j x_j + ... + (b_s - sum_j c_j b_j) y."""
    times = torch.tensor([*_times(rows), rows[-1].s], dtype=torch.float64)  # of the states, oldest first
    b = path.schedule(times)[1].tolist()
    return tuple(
        row._replace(y=row.y + b[n + 1] - sum(c * b[n - j] for j, c in enumerate(row.x))) for n, row in enumerate(rows)
    )


def fold(rows: tuple[Row, ...], path: Path, prediction: Prediction) -> tuple[Row, ...]:
    """The same plan over (states, network outputs): E_k = A_k X_k + B_k out_k + C_k y was evaluated at the state X_k.

    sum_j c_j X_j + sum_k w_k E_k  =  sum_j c_j X_j + sum_k w_k A_k X_k + sum_k w_k B_k out_k + (sum_k w_k C_k) y
    """
    table = tabulate(path, prediction, _times(rows))
    folded, evaluated = [], []
    for n, row in enumerate(rows):
        evaluated = [n, *evaluated] if row.e else evaluated  # rows whose evaluations E_0, E_1, ... are
        c, outs, y = list(row.x), [], row.y
        for at, w in zip(evaluated, row.e, strict=False):
            a, b, to_y = getattr(table[rows[at].t], row.uses)
            c += [0.0] * (n - at + 1 - len(c))
            c[n - at] = c[n - at] + w * a
            y = y + w * to_y
            outs.append(w * b)
        folded.append(row._replace(x=tuple(c), e=tuple(outs), y=y))
    return tuple(folded)


def _times(rows: tuple[Row, ...]) -> tuple[float, ...]:
    return tuple(r.t for r in rows)


def draw(x: Tensor, row: Row, source: Noise | None) -> Tensor | None:
    """Standard normal noise drawn where the generator lives, so that a CPU seed gives the same noise on every device."""
    if not isinstance(row.noise, Tensor) and row.noise == 0.0:
        return None
    if source is not None and not isinstance(source, torch.Generator):
        return source(row)
    device = x.device if source is None else source.device
    return torch.randn(x.shape, dtype=x.dtype, device=device, generator=source).to(x.device)
