"""`fewstep bench solvers`: error against the exact flow, and sliced Wasserstein distance, for every fixed solver at 1 to 50 evaluations.

error = root mean square of (sample - end point of the probability flow from the same start) / root mean square of the end points.
The end point is integrated with 2000 steps of a third-order solver. Each solver runs on each grid; the picture shows the best grid.
"""

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from fewstep.bench.catalogue import FIXED, REFERENCE
from fewstep.bench.timing import machine, write
from fewstep.bench.worlds import World, mixture_worlds
from fewstep.grids import Grid, Karras, LogSNR, Power, Uniform
from fewstep.metrics import sliced_wasserstein
from fewstep.paths import VP, Path
from fewstep.sampling import sample
from fewstep.solvers import Solver

NFES = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50)
GRIDS: dict[str, Grid] = {
    "uniform": Uniform(),
    "quadratic": Power(2.0),
    "logSNR": LogSNR(end=1e-3),
    "Karras": Karras(sigma_min=0.02),
}
# Starts per world: enough that the error's own standard error is below 5 % of it.
STARTS = {2: 1024, 64: 128, 3072: 24}


def reference(world: World, x: Tensor) -> Tensor:
    """The end point of the probability flow from x at t_max, to the clean end."""
    path = world.path
    fine = LogSNR(end=1e-5)(path, 2000)
    return sample(world.denoise, x, path, REFERENCE, fine)


def grid_of(solver: Solver, grid: Grid, path: Path, nfe: int) -> Tensor | None:
    """The grid on which the solver makes exactly nfe evaluations; None where there is none, or the grid cannot be that short."""
    for n in range(1, nfe + 1):
        try:
            times = grid(path, n)
            used = sum(bool(r.e) for r in solver.plan(path, times))
        except ValueError:
            continue
        if used == nfe:
            return times
    return None


def table(world: World, name: str) -> Iterator[dict[str, Any]]:
    """One row per solver, grid and number of evaluations."""
    dim = int(name.split("-")[0])
    g = torch.Generator().manual_seed(1)
    x = world.start(STARTS[dim], g)
    exact = reference(world, x)
    scale = exact.square().mean().sqrt()
    real = None if world.data is None else world.data(len(x), g)
    if real is not None and world.data is not None:
        yield {
            "world": name,
            "floor_sw": _distance(world.data(len(x), g), real),
            "reference_sw": _distance(exact, real),
        }
    for label, solver in FIXED.items():
        for grid_label, grid in GRIDS.items():
            for nfe in NFES:
                times = grid_of(solver, grid, world.path, nfe)
                if times is None:
                    continue
                made = sample(world.denoise, x, world.path, solver, times, generator=torch.Generator().manual_seed(2))
                row = {"world": name, "solver": label, "grid": grid_label, "nfe": nfe}
                row["error"] = ((made - exact).square().mean().sqrt() / scale).item()
                yield row if real is None else row | {"sw": _distance(made, real)}


def _distance(a: Tensor, b: Tensor) -> float:
    return sliced_wasserstein(a, b, 64, generator=torch.Generator().manual_seed(3)).item()


def main(threads: int, out: str | None) -> int:
    """Print and store the table; beside FILE.json a picture FILE.png."""
    torch.set_num_threads(threads)
    start, rows = time.process_time(), []
    for name, world in mixture_worlds(VP()).items():
        sys.stderr.write(f"{name} ...\n")
        rows += list(table(world, name))
    result = {"bench": "solvers", **machine(), "path": "VP", "starts": {f"{d}-d": n for d, n in STARTS.items()}}
    write(result | {"cpu_s": round(time.process_time() - start, 1), "rows": rows}, out)
    if out is not None:
        draw(rows, FilePath(out).with_suffix(".png"))
    return 0


def best(rows: list[dict[str, Any]], world: str, solver: str) -> dict[int, tuple[float, str]]:
    """nfe -> (least error over the grids, its grid)."""
    found: dict[int, tuple[float, str]] = {}
    for r in rows:
        if r["world"] == world and r.get("solver") == solver and math.isfinite(r["error"]):
            found[r["nfe"]] = min(found.get(r["nfe"], (math.inf, "")), (r["error"], r["grid"]))
    return found


def draw(rows: list[dict[str, Any]], file: FilePath) -> None:
    """Error against evaluations, one panel per world, each solver on its best grid."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    worlds = list(dict.fromkeys(r["world"] for r in rows))
    figure, axes = plt.subplots(math.ceil(len(worlds) / 2), 2, figsize=(12, 4.2 * math.ceil(len(worlds) / 2)))
    colours = plt.get_cmap("tab20").colors  # pyright: ignore[reportAttributeAccessIssue]
    for axis, world in zip(axes.flat, worlds, strict=False):
        for i, solver in enumerate(FIXED):
            curve = sorted(best(rows, world, solver).items())
            if curve:
                style = "--" if i >= len(colours) else "-"
                xs, ys = [n for n, _ in curve], [e for _, (e, _) in curve]
                axis.loglog(xs, ys, style, marker=".", color=colours[i % len(colours)], label=solver)
        axis.set(title=world, xlabel="network evaluations", ylabel="relative error to the exact flow")
        axis.grid(alpha=0.3, which="both")
    axes.flat[0].legend(fontsize=7, ncol=2)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)
