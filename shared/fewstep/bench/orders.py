"""`fewstep bench orders`: the measured order of every deterministic solver beside the one it declares.

error(n) = max |sample - exact flow map| on one Gaussian (closed form) with steps even in lambda; order = log2 error(n)/error(2n).
The first step is cut into short ones, so that a start-up of lower order does not decide the order of the whole.

Stochastic solvers: the weak order, of the mean and the variance of x. On one Gaussian the denoiser is affine, so a whole chain is a
linear combination of independent normals; `Affine` runs sample() on its coefficients, which gives both moments without sampling error.
"""

import math
import time
from typing import Any

import torch
from torch import Tensor

from fewstep.bench.catalogue import DETERMINISTIC, SPANNING, STOCHASTIC
from fewstep.bench.timing import machine, write
from fewstep.estimate import Estimate
from fewstep.paths import EDM, VP, Cosine, Path, RectifiedFlow, ResidualShift, Trig
from fewstep.sampling import sample
from fewstep.solvers import Solver
from fewstep.toy import gaussian

# path, first and last time: lambda from about -4.5 to about 3.
INTERVALS: dict[str, tuple[Path, float, float]] = {
    "VP": (VP(), 1.0, 0.01),
    "Cosine": (Cosine(), 0.993, 0.03),
    "EDM": (EDM(), 90.0, 0.05),
    "RectifiedFlow": (RectifiedFlow(), 0.989, 0.05),
    "Trig": (Trig(), 1.56, 0.05),
    "ResidualShift": (ResidualShift(), 14.0, 2.0),
}
STEPS = (16, 32, 64, 128, 256)
# A multistep method begins with steps of lower order; with the first step cut this often they stay below the errors shown.
STARTUP = 6
ROUNDING = 1e-10
# Of `SPANNING`: numbers of steps a factor of 4 apart end alike, modulo 2 and 3.
APART = 2


def lambda_grid(path: Path, hi: float, lo: float, n: int, halvings: int = 0) -> Tensor:
    """n steps evenly spaced in lambda between two times inside the path; the first one cut at 1/2, 1/4, ... of it."""
    ends = path.log_snr(torch.tensor([hi, lo], dtype=torch.float64))
    cuts = 2.0 ** torch.arange(-halvings, 0, dtype=torch.float64)
    steps = torch.cat([torch.zeros(1, dtype=torch.float64), cuts, torch.arange(1, n + 1, dtype=torch.float64)]) / n
    t = path.time_of_log_snr(ends[0] + steps * (ends[1] - ends[0]))
    t[0], t[-1] = hi, lo
    return t


def errors(solver: Solver, path: Path, hi: float, lo: float) -> list[float]:
    """Largest error at each of STEPS, from 16 starts of one Gaussian with mean (0.5, -1, 0.3) and deviations (0.4, 0.9, 1.8).

    Three deviations, so that an error which changes sign in one coordinate is hidden by the others.
    """
    g = torch.Generator().manual_seed(0)
    y = torch.randn(16, 3, dtype=torch.float64, generator=g) if path.anchored else None
    world = gaussian(path, torch.tensor([0.5, -1.0, 0.3]), torch.tensor([0.4, 0.9, 1.8]), dim=3, y=y)
    noise = torch.randn(16, 3, dtype=torch.float64, generator=g)
    x = path.sample(world.draw(16, g), noise, torch.full((16,), hi, dtype=torch.float64), y)
    exact = world.flow_map(x, hi, lo)
    return [
        (sample(world, x, path, solver, lambda_grid(path, hi, lo, n, STARTUP), y) - exact).abs().max().item()
        for n in STEPS
    ]


def measured(found: list[float], apart: int = 1) -> float:
    """log2 of the error ratio of the finest pair of grids above rounding, per halving; so many halvings lie between the two."""
    a, b = [pair for pair in zip(found, found[apart:], strict=False) if pair[1] > ROUNDING][-1]
    return math.log2(a / b) / apart


class Affine:
    """x = k_0 + sum_i k_i xi_i with independent normals xi: states are the coefficients (1, m), data is N(mean, std^2)."""

    def __init__(self, path: Path, mean: float, std: float) -> None:
        self.path, self.mean, self.var = path, mean, std**2

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        """E[x0 | x] = mean + a var/v (x - a mean),  E[eps | x] = s/v (x - a mean),  v = a^2 var + s^2."""
        a, _, s = (v.item() for v in self.path.schedule(torch.as_tensor(t, dtype=torch.float64)))
        one = torch.zeros_like(x)
        one[..., 0] = 1
        v, centred = a**2 * self.var + s**2, x - a * self.mean * one
        return Estimate(self.mean * one + a * self.var / v * centred, s / v * centred)


def moments(solver: Solver, path: Path, grid: Tensor, mean: float, std: float) -> tuple[float, float]:
    """Exact mean and variance at grid[-1] of the chain started from the exact marginal at grid[0], anchor at 0."""
    (a, *_), (_, *_), (s, *_) = path.schedule(grid)
    draws = sum(not isinstance(r.noise, float) or r.noise != 0.0 for r in solver.plan(path, grid))
    x = torch.zeros(1, 2 + draws, dtype=torch.float64)
    x[0, 0], x[0, 1] = a * mean, (a**2 * std**2 + s**2).sqrt()
    fresh = iter(torch.eye(2 + draws, dtype=torch.float64)[2:, None])
    end = sample(Affine(path, mean, std), x, path, solver, grid, generator=lambda row: next(fresh))[0]
    return end[0].item(), end[1:].square().sum().item()


def weak_errors(solver: Solver, path: Path, hi: float, lo: float, mean: float = 0.8, std: float = 0.6) -> list[float]:
    """|mean - exact| + |variance - exact| at each of STEPS."""
    a, _, s = path.levels(lo)
    exact = a * mean, a**2 * std**2 + s**2
    found = [moments(solver, path, lambda_grid(path, hi, lo, n), mean, std) for n in STEPS]
    return [abs(m - exact[0]) + abs(v - exact[1]) for m, v in found]


def main(threads: int, out: str | None) -> int:
    """Print the tables; non-zero where a solver on a path misses its declared order by more than 0.25."""
    torch.set_num_threads(threads)
    start, rows, missed = time.process_time(), [], 0
    for kind, solvers in (("deterministic", DETERMINISTIC | SPANNING), ("stochastic", STOCHASTIC)):
        for name, solver in solvers.items():
            row: dict[str, Any] = {"solver": name, "kind": kind, "declared": solver.order}
            for label, interval in INTERVALS.items():
                found = errors(solver, *interval) if kind == "deterministic" else weak_errors(solver, *interval)
                row[label] = round(measured(found, APART if name in SPANNING else 1), 2)
                missed += row[label] < solver.order - 0.25
            rows.append(row)
    write({"bench": "orders", **machine(), "cpu_s": round(time.process_time() - start, 1), "rows": rows}, out)
    return 1 if missed else 0
