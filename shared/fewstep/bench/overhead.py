"""`fewstep bench overhead`: what sampling costs besides the network, per step, next to diffusers in the same run.

The network answers at once with a stored tensor (eps), so all that is timed is the samplers' own work: conversion of the prediction,
the step, the loop and, once per trajectory, the plan. A bare loop that only calls the network is subtracted from both.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.bench.timing import best_of, machine, write
from fewstep.denoiser import Denoiser
from fewstep.grids import Spaced
from fewstep.paths import DDPM
from fewstep.prediction import Eps
from fewstep.sampling import sample
from fewstep.solvers.base import Solver
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.dpm_multistep import DPM3M, DPMpp3M
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.pndm import PLMS
from fewstep.solvers.unipc import UniPC

STEPS = 20
SHAPES = ((1, 4, 64, 64), (4, 4, 64, 64), (1, 16, 128, 128), (16, 4, 128, 128))
# name -> ours, and the diffusers scheduler of the same equations with its arguments.
PAIRS: dict[str, tuple[Solver, str, dict[str, Any]]] = {
    "DDIM": (DDIM(), "DDIMScheduler", {"clip_sample": False}),
    "DPM++2M": (DPMpp2M(), "DPMSolverMultistepScheduler", {"solver_order": 2}),
    "DPM++3M": (DPMpp3M(), "DPMSolverMultistepScheduler", {"solver_order": 3}),
    "UniPC-2": (UniPC(2), "UniPCMultistepScheduler", {"solver_order": 2}),
    "UniPC-3": (UniPC(3), "UniPCMultistepScheduler", {"solver_order": 3}),
    "DEIS-3": (DPM3M(variant="exact"), "DEISMultistepScheduler", {"solver_order": 3}),
    "PLMS": (PLMS(), "PNDMScheduler", {"skip_prk_steps": True}),
}


class Answer(nn.Module):
    """A network that costs nothing: it returns the same noise."""

    def __init__(self, eps: Tensor) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.eps


def main(threads: int, out: str | None) -> int:
    """Microseconds per step of every pair and shape, with 1 thread and, where asked for more, with that many too."""
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            for shape in SHAPES:
                rows += [{"threads": count, "shape": list(shape), **row} for row in _rows(shape)]
    write({"bench": "overhead", "steps": STEPS, **machine(), "rows": rows}, out)
    return 0


def _rows(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    net = Answer(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    small = x.numel() < 100_000
    bare = best_of(lambda: _bare(x, net))
    # What the arithmetic of the shortest step takes here and now: x c + eps w.
    floor = best_of(lambda: (x * 0.5).add_(net.eps, alpha=0.3), *((100, 20) if small else (7, 5))) * 1e6
    rounds = (60, 2) if small else (15, 2)  # for both alike: the least of as many rounds
    rows = []
    for name, (solver, _, _) in PAIRS.items():
        ours = best_of(lambda solver=solver: _ours(x, net, solver), *rounds) - bare
        peer = best_of(lambda name=name: _diffusers(x, net, name), *rounds) - bare
        row = {"solver": name, "ours_us": ours / STEPS * 1e6, "diffusers_us": peer / STEPS * 1e6, "floor_us": floor}
        rows.append(row | {"ratio": ours / peer})
    return rows


def _bare(x: Tensor, net: nn.Module) -> None:
    label = torch.zeros(len(x))
    for _ in range(STEPS):
        net(x, label)


def _ours(x: Tensor, net: nn.Module, solver: Solver) -> Tensor:
    path = DDPM()
    return sample(Denoiser(net, path, Eps()).bind(), x, path, solver, Spaced("trailing")(path, STEPS))


def _diffusers(x: Tensor, net: nn.Module, name: str) -> Tensor:
    scheduler = _scheduler(name)
    scheduler.set_timesteps(STEPS)
    label = torch.zeros(len(x))
    for t in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), label), t, x).prev_sample
    return x


@cache
def _scheduler(name: str) -> Any:
    import diffusers

    _, kind, extra = PAIRS[name]
    betas = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    return getattr(diffusers, kind)(**betas, timestep_spacing="trailing", **extra)
