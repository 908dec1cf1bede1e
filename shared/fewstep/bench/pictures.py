"""`fewstep bench pictures --out DIR`: the pictures of the documentation, each from an exact world in seconds."""

import json
import sys
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from fewstep.bench.catalogue import DETERMINISTIC, REFERENCE, STOCHASTIC
from fewstep.bench.orders import INTERVALS, STEPS, errors
from fewstep.grids import AlignYourSteps, Grid, Karras, LogSNR, Power, Uniform
from fewstep.guidance import APG, CFGRule, Interval, Mixed, PerpNeg, Rescale, Rule
from fewstep.paths import (
    DDPM,
    EDM,
    OUVE,
    SBVE,
    VE,
    VP,
    Cosine,
    Path,
    Polynomial,
    RectifiedFlow,
    ResidualShift,
    SubVP,
    Trig,
)
from fewstep.reward_search import Found, beam_search, best_of_n, rollover, search_trajectories, zero_order
from fewstep.sampling import Callback, sample
from fewstep.search import Evolution, error, fit_olss, reference, search_boss, search_times, search_usf
from fewstep.search.starts import fine_grid
from fewstep.solvers.ancestral import Ancestral
from fewstep.solvers.base import Row, Solver
from fewstep.solvers.bridge import BridgeStart
from fewstep.solvers.table import Table
from fewstep.toy import Mixture, ring


class Trace(Callback):
    """Keeps every state."""

    def __init__(self, x: Tensor) -> None:
        self.states = [x]

    def on_step(self, x: Tensor, done: int, total: int, row: Row) -> bool:
        self.states.append(x)
        return False


def _axes(columns: int, height: float = 3.4, width: float = 3.4) -> tuple[Any, Any]:
    figure, axes = plt.subplots(1, columns, figsize=(width * columns, height), squeeze=False)
    return figure, axes[0]


def paths() -> Any:
    """a, b, s over the time range of twelve paths."""
    table: dict[str, Path] = {
        "VP": VP(), "Cosine": Cosine(), "SubVP": SubVP(), "DDPM": DDPM(), "VE / 50": VE(), "EDM / 80": EDM(),
        "RectifiedFlow": RectifiedFlow(), "Trig": Trig(), "Polynomial(3)": Polynomial(3),
        "ResidualShift": ResidualShift(), "OUVE": OUVE(), "SBVE": SBVE(),
    }  # fmt: skip
    figure, axes = plt.subplots(3, 4, figsize=(12, 7.5))
    for axis, (name, path) in zip(axes.flat, table.items(), strict=True):
        t = torch.linspace(path.t_min, path.t_max, 300, dtype=torch.float64)
        scale = float(name.split("/ ")[1]) if "/" in name else 1.0
        for curve, label in zip(path.schedule(t), ("a", "b", "s"), strict=True):
            if label != "b" or path.anchored:
                axis.plot(t, curve / (scale if label == "s" else 1.0), label=label)
        axis.set_title(name, fontsize=10)
    axes.flat[0].legend()
    return figure


def grids() -> Any:
    """Where six grids put ten steps, in lambda."""
    figure, (axis,) = _axes(1, width=8)
    path = VP()
    table: dict[str, Grid] = {
        "Uniform": Uniform(end=1e-3), "Power(2)": Power(2.0, end=1e-3), "Power(7)": Power(7.0, end=1e-3),
        "LogSNR": LogSNR(end=1e-3), "Karras": Karras(sigma_min=0.02), "AlignYourSteps": AlignYourSteps(),
    }  # fmt: skip
    for i, (name, grid) in enumerate(table.items()):
        lam = path.log_snr(grid(path, 10))
        lam = lam[lam.isfinite()]
        axis.plot(lam, [-i] * len(lam), "o-", label=name)
    axis.set(xlabel="lambda = log(a/s)", yticks=[-i for i in range(len(table))])
    axis.set_yticklabels(list(table))
    return figure


def _trajectories(solvers: dict[str, Solver], nfe: int, starts: int = 12) -> Any:
    """`starts` starts on the ring world, with the exact flow in grey."""
    path = VP()
    world, grid = ring(path, std=0.15), LogSNR(end=1e-3)
    x = torch.randn(starts, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    fine = Trace(x)
    sample(world, x, path, REFERENCE, grid(path, 400), callbacks=[fine])
    figure, axes = _axes(len(solvers))
    for axis, (name, solver) in zip(axes, solvers.items(), strict=True):
        per_step = sum(bool(r.e) for r in solver.plan(path, grid(path, nfe))) / nfe
        trace = Trace(x)
        times = grid(path, max(2, round(nfe / per_step)))
        sample(world, x, path, solver, times, generator=torch.Generator().manual_seed(0), callbacks=[trace])
        axis.plot(*torch.stack(fine.states).unbind(-1), color="0.75", lw=2)
        axis.plot(*torch.stack(trace.states).unbind(-1), "o-", ms=3, lw=1)
        axis.set_title(f"{name}, {len(times) - 1} steps", fontsize=10)
        axis.set_aspect("equal")
    return figure


def _orders(names: tuple[str, ...]) -> Any:
    """Error against steps on the VP path, one Gaussian."""
    figure, (axis,) = _axes(1, width=6, height=4.5)
    for name in names:
        axis.loglog(
            STEPS, errors(DETERMINISTIC[name], *INTERVALS["VP"]), "o-", label=f"{name} ({DETERMINISTIC[name].order})"
        )
    axis.set(xlabel="steps", ylabel="largest error to the exact flow")
    axis.legend(fontsize=8, title="solver (declared order)")
    axis.grid(alpha=0.3, which="both")
    return figure


def exponential() -> Any:
    return _orders(
        ("DDIM", "DPM-Solver++(2M)", "DPM-Solver++(3M)", "DPM-Solver++(3M) exact", "DPM-Solver-2S", "DPM-Solver-3S")
    )


def unipc_v3() -> Any:
    return _orders(("DPM-Solver++(2M)", "UniPC-1", "UniP-2", "UniPC-2", "UniP-3", "UniPC-3"))


def multistep() -> Any:
    return _orders(("DEIS t, 1", "DEIS t, 2", "DEIS t, 3", "LMS-4", "iPNDM", "PNDM", "GHVB 1.5", "BDIA 1", "BDIA 0.5"))


def runge_kutta() -> Any:
    return _orders(("Heun", "midpoint", "Kutta 3", "RK4", "Heun in t", "RK4 in t"))


def stochastic() -> Any:
    names = ("ancestral", "DPM-Solver++(2M) SDE", "DPM-Solver++ SDE", "Euler-Maruyama")
    return _trajectories({n: STOCHASTIC[n] for n in names}, 16, 4)


def few_steps() -> Any:
    names = ("DDIM", "Heun", "DPM-Solver++(2M)", "UniPC-3")
    return _trajectories({n: DETERMINISTIC[n] for n in names}, 6)


def anchored() -> Any:
    """Three ways from an anchor (grey) to two Gaussians; a bridge starts without noise, so its sampler adds some."""
    ddim = DETERMINISTIC["DDIM"]
    table: dict[str, tuple[Path, Solver]] = {
        "ResidualShift, DDIM": (ResidualShift(), ddim),
        "OUVE, DDIM": (OUVE(), ddim),
        "SBVE, SB-SDE": (SBVE(), BridgeStart(Ancestral())),
    }
    figure, axes = _axes(3)
    means = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    for axis, (name, (path, solver)) in zip(axes, table.items(), strict=True):
        g = torch.Generator().manual_seed(1)
        y = torch.tensor([-1.0, 0.0], dtype=torch.float64) + 0.2 * torch.randn(40, 2, dtype=torch.float64, generator=g)
        world = Mixture(path, means, 0.02 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2), y=y)
        x = path.start(torch.randn(40, 2, dtype=torch.float64, generator=g), y)
        trace = Trace(x)
        sample(world, x, path, solver, Uniform()(path, 24), y, g, [trace])
        axis.plot(*torch.stack(trace.states).unbind(-1), lw=0.7)
        axis.plot(*y.T, "o", color="0.6", ms=3)
        axis.plot(*trace.states[-1].T, "o", ms=3)
        axis.set_title(name, fontsize=10)
    return figure


def guidance() -> Any:
    """Samples under five rules: the condition is one broad mode of three, the data of the unconditional model all three."""
    path = VP()
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], dtype=torch.float64)
    eye = 0.5 * torch.eye(2, dtype=torch.float64)
    everything, chosen = Mixture(path, means, eye.expand(3, 2, 2)), Mixture(path, means[:1], eye[None])
    negative = Mixture(path, means[1:2], eye[None])
    rules: dict[str, tuple[tuple[Mixture, ...], Rule]] = {
        "CFG 1": ((chosen, everything), CFGRule(1.0)),
        "CFG 5": ((chosen, everything), CFGRule(5.0)),
        "interval": ((chosen, everything), Interval(CFGRule(5.0), 0.2, 0.6)),
        "rescale": ((chosen, everything), Rescale(CFGRule(5.0))),
        "APG": ((chosen, everything), APG(5.0)),
        "perp-neg": ((chosen, everything, negative), PerpNeg(5.0, (-0.2,))),
    }
    x = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    figure, axes = _axes(len(rules), width=2.6, height=2.8)
    for axis, (name, (branches, rule)) in zip(axes, rules.items(), strict=True):
        end = sample(
            Mixed(branches, rule, path), x, path, DETERMINISTIC["DPM-Solver++(2M)"], LogSNR(end=1e-3)(path, 24)
        )
        axis.plot(*everything.draw(400, torch.Generator().manual_seed(1)).T, ".", color="0.85", ms=3)
        axis.plot(*end.T, ".", ms=3)
        axis.set(title=name, xlim=(-4, 6), ylim=(-5, 5))
    return figure


def searched() -> Any:
    """Where searched tables of eight evaluations put their times on the ring, in lambda, and their errors beside even steps."""
    path, g = VP(), torch.Generator().manual_seed(4)
    world = ring(path)
    fit, unseen = ([reference(world, torch.randn(n, 2, dtype=torch.float64, generator=g), path)] for n in (128, 1024))
    few = Evolution(generations=6)
    tables = {
        "even, DDIM": Table.of(DETERMINISTIC["DDIM"], path, fine_grid(path, 8)),
        "BOSS": search_boss(path, fit, 8),
        "OLSS": fit_olss(path, fit, 8),
        "even, DPM-Solver++(2M)": Table.of(DETERMINISTIC["DPM-Solver++(2M)"], path, fine_grid(path, 8)),
        "AutoDiffusion": search_times(path, fit, 8, g, DETERMINISTIC["DPM-Solver++(2M)"], sizes=few),
        "USF": search_usf(path, fit, 8, g, sizes=few),
    }
    figure, (axis,) = _axes(1, width=8)
    names = []
    for i, (name, table) in enumerate(tables.items()):
        lam = path.log_snr(table.grid)
        axis.plot(lam[lam.isfinite()], [-i] * int(lam.isfinite().sum()), "o-")
        names.append(f"{name}: {error(table, path, table.grid, unseen):.3f}")
    axis.set(xlabel="lambda = log(a/s)", yticks=[-i for i in range(len(names))])
    axis.set_yticklabels(names)
    return figure


def reward_search() -> Any:
    """Mean reward of 400 searches against evaluations, on the ring; the reward is -|x0 - goal|^2 of one of the eight modes."""
    figure, (axis,) = _axes(1, width=6, height=4)
    for name, (evaluations, rewards) in reward_curves().items():
        axis.plot(evaluations, rewards, "o-", label=name)
    axis.set(xlabel="evaluations", ylabel="mean reward", xscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return figure


def reward_curves() -> dict[str, tuple[list[int], list[float]]]:
    """(evaluations, mean rewards) of each search."""
    path, goal, searches = VP(), torch.tensor([2.0, 0.0], dtype=torch.float64), 400
    world, grid = ring(path), Uniform(end=1e-3)(path, 10)

    def reward(x0: Tensor) -> Tensor:
        return -(x0 - goal).square().sum(1)

    def plain(noise: Tensor) -> Tensor:
        return sample(world, noise, path, DETERMINISTIC["DPM-Solver++(2M)"], grid)

    def starts(k: int, g: torch.Generator) -> Tensor:
        return torch.randn(k, searches, 2, dtype=torch.float64, generator=g)

    runs: dict[str, Callable[[int, torch.Generator], Found]] = {
        "best of n": lambda k, g: best_of_n(plain, starts(1, g)[0], reward, k, g, nfe=10),
        "zero order": lambda k, g: zero_order(
            plain, starts(1, g)[0], reward, max(k // 4, 1), min(k, 4), 0.5, g, nfe=10
        ),
        "over paths": lambda k, g: search_trajectories(
            world, starts(k, g), path, DETERMINISTIC["DDIM"], grid, reward, 4, 2, 4, 2, generator=g
        ),
        "rollover": lambda k, g: rollover(world, starts(2 * k, g), path, grid, reward, 10 * k + 9, generator=g),
        "beam, 1 ahead": lambda k, g: beam_search(world, starts(k, g), path, grid, reward, 2, 1, generator=g),
        "beam, 3 ahead": lambda k, g: beam_search(world, starts(k, g), path, grid, reward, 2, 3, generator=g),
    }
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for name, run in runs.items():
        found = [run(k, torch.Generator().manual_seed(k)) for k in (1, 2, 4, 8)]
        curves[name] = [f.nfe for f in found], [f.reward.mean().item() for f in found]
    return curves


PICTURES: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (
        paths, grids, few_steps, exponential, unipc_v3, multistep, runge_kutta, stochastic, anchored, guidance, searched,
        reward_search,
    )
}  # fmt: skip


def main(threads: int, out: str | None) -> int:
    """Write NAME.png for every picture into the folder `out` (docs/pictures)."""
    torch.set_num_threads(threads)
    folder = FilePath("docs/pictures" if out is None else out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        sys.stderr.write(f"{name} ...\n")
        figure = draw()
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=70)
        plt.close(figure)
    print(json.dumps({"folder": str(folder), "pictures": sorted(PICTURES)}))
    return 0
