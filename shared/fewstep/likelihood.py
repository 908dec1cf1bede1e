"""Log densities along the way: what the model thinks of a sample.

Probability flow (arXiv:2011.13456, section 4.3), u = a' x0 + b' y + s' eps:

    dx/dt = u,    d/dt log p_t(x_t) = -div u

Ito (arXiv:2412.17762), along a stochastic trajectory from noise to data, dt > 0, z = x - b y, from the score alone:

    d log p = D f dt + <dz + f z dt, S> - (g^2/2)|S|^2 dt,    f = a'/a,  g^2 = (s^2)' - 2 f s^2,  S = -eps/s
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.estimate import Estimate
from fewstep.paths import Path
from fewstep.sampling import Callback
from fewstep.solvers.base import Row


class Trace(ABC):
    """tr J ~ scale sum_p <v_p, J v_p>."""

    @abstractmethod
    def directions(self, x: Tensor) -> tuple[Tensor, float]:
        """(v, scale) for states like x: (B, ...); v: (P, B, ...)."""


@dataclass(frozen=True)
class ExactTrace(Trace):
    """All D basis vectors: D vector-Jacobian products per evaluation."""

    def directions(self, x: Tensor) -> tuple[Tensor, float]:
        d = x[0].numel()
        basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
        return basis.expand(d, *x.shape), 1.0


class Hutchinson(Trace):
    """Random signs, unbiased: `probes` products per evaluation, the same vectors along a whole trajectory.

    Args:
        probes: number of vectors; the variance of one is 2 (|J_sym|_F^2 - |diag J|^2).
        generator: on the CPU or on the device of the states.
    """

    def __init__(self, probes: int = 1, generator: torch.Generator | None = None) -> None:
        self.probes, self.generator = probes, generator

    def directions(self, x: Tensor) -> tuple[Tensor, float]:
        device = x.device if self.generator is None else self.generator.device
        bits = torch.randint(0, 2, (self.probes, *x.shape), generator=self.generator, device=device)
        return (2 * bits - 1).to(x), 1 / self.probes


def pulled(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x) (B, ...), J^T v_p (P, B, ...)) for v: (P, B, ...)."""
    value, pull = torch.func.vjp(f, x)[:2]
    return value, torch.func.vmap(pull)(v)[0]


def value_and_trace(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(f(x) (B, ...), scale sum_p <v_p, J v_p> (B,)) for f that treats samples independently; v: (P, B, ...)."""
    value, g = pulled(f, x, v)
    return value, scale * (g * v).flatten(2).sum((0, 2))


class Flowed(NamedTuple):
    """x: (B, ...) at the end of the grid; change: (B,) log p_end(x_end) - log p_start(x_start)."""

    x: Tensor
    change: Tensor


def flow_density(
    denoise: Denoise, x: Tensor, path: Path, grid: Tensor, trace: Trace | None = None, y: Tensor | None = None
) -> Flowed:
    """The probability flow and its change of log density, in either direction of time. 4 NFE per step.

    Runge-Kutta of order 4 in t, for the state and its density together.

    Args:
        denoise: bound denoiser, differentiable in x, samples independent.
        x: (B, ...) real, at grid[0].
        grid: (n + 1,) times, decreasing to generate or increasing to encode; a', b', s' finite on it.
        trace: exact where not given.
        y: (B, ...), on anchored paths.
    """
    v, scale = (trace or ExactTrace()).directions(x)

    def slope(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        time = torch.tensor([t], dtype=torch.float64)
        da, db, ds = (r.item() for r in path.rates(time))
        if not math.isfinite(da + db + ds):
            raise ValueError(
                f"the probability flow has no finite velocity at t = {t:g} on {path}: end the grid before it"
            )

        def velocity(x: Tensor) -> Tensor:
            estimate = denoise(x, t)
            u = da * estimate.x0 + ds * estimate.eps
            return u if y is None else u + db * y

        u, div = value_and_trace(velocity, x, v, scale)
        return u, -div

    times, change = grid.double().tolist(), x.new_zeros(len(x))
    for t, s in pairwise(times):
        h = s - t
        k1, l1 = slope(x, t)
        k2, l2 = slope(x + h / 2 * k1, t + h / 2)
        k3, l3 = slope(x + h / 2 * k2, t + h / 2)
        k4, l4 = slope(x + h * k3, s)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        change = change + h / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
    return Flowed(x, change)


def log_likelihood(
    denoise: Denoise,
    x: Tensor,
    path: Path,
    grid: Tensor,
    trace: Trace | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    y: Tensor | None = None,
) -> Tensor:
    """log density of data under the model's probability flow, (B,) in nats; bits per dimension are -value/(D log 2).

    Args:
        x: (B, ...) states at grid[-1], the clean end.
        grid: a sampling grid, (n + 1,) decreasing times; it is run backwards.
        prior: log density of states at grid[0]; where not given N((a + b) y, s^2), what `Path.start` draws from.
    """
    end, change = flow_density(denoise, x, path, grid.flip(0), trace, y)
    if prior is not None:
        return prior(end) - change
    a, b, s = path.levels(grid[0].item())
    z = (end if y is None else end - (a + b) * y) / s
    return -0.5 * (z.square() + math.log(2 * math.pi * s**2)).flatten(1).sum(1) - change


class SDE(NamedTuple):
    """dz = f z dt + g dW forward in time; s as on the path."""

    f: float
    g2: float
    s: float


@lru_cache(maxsize=1024)
def sde(path: Path, t: float) -> SDE:
    """f = a'/a and g^2 = (s^2)' - 2 f s^2 of the path at a time.

    Raises:
        ValueError: where a = 0 or s' is infinite.
    """
    time = torch.tensor(t, dtype=torch.float64)
    (a, _, s), (da, _, ds) = path.schedule(time), path.rates(time)
    f = da / a
    found = SDE(f.item(), (2 * s * ds - 2 * f * s**2).item(), s.item())
    if not all(map(math.isfinite, found)) or found.s == 0:
        raise ValueError(
            f"the SDE of {path} has no finite drift, noise or score at t = {t:g}: start and end the grid inside"
        )
    return found


def ito_change(z: Tensor, dz: Tensor, score: Tensor, f: float, g2: float, dt: float) -> Tensor:
    """d log p = D f dt + <dz + f z dt, S> - (g^2/2)|S|^2 dt; z, dz: (..., B, D), score: (..., B, D) -> (..., B)."""
    return z.shape[-1] * f * dt + ((dz + f * dt * z) * score).sum(-1) - g2 / 2 * dt * score.square().sum(-1)


class ItoLogDensity(Callback):
    """Accumulates log p along a stochastic trajectory, to O(sqrt(dt)); for solvers of one evaluation per step.

    Args:
        path: of the states.
        y: (B, ...), on anchored paths.
    Attributes:
        change: (B,) log p_s(x_s) - log p_t(x_t) since the first step.
    """

    def __init__(self, path: Path, y: Tensor | None = None) -> None:
        self.path, self.y = path, y
        self.change: Tensor | float = 0.0

    def on_estimate(self, x: Tensor, estimate: Estimate, row: Row) -> Estimate:
        self._at = (self._centred(x, row.t), estimate.eps.flatten(1), row.t)
        return estimate

    def on_step(self, x: Tensor, done: int, total: int, row: Row) -> bool:
        z, eps, t = self._at
        f, g2, s = sde(self.path, t)
        self.change = self.change + ito_change(z, self._centred(x, row.s) - z, eps / -s, f, g2, t - row.s)
        return False

    def _centred(self, x: Tensor, t: float) -> Tensor:
        if self.y is not None:
            x = x - self.path.levels(t)[1] * self.y
        return x.flatten(1)
