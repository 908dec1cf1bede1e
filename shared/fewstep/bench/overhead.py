"""`fewstep bench overhead`: what sampling costs besides the network, per step, next to diffusers in the same run.

The network answers at once with a stored tensor (eps), so all that is timed is the samplers' own work: conversion of the prediction,
the step, the loop and, once per trajectory, the plan. A bare loop that only calls the network is subtracted from both.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.bench.timing import best_of, machine, write
from fewstep.denoiser import Denoiser
from fewstep.grids import Spaced
from fewstep.paths import DDPM
from fewstep.prediction import Eps
from fewstep.sampling import sample
from fewstep.solvers import DDIM, DPMpp2M, Solver

STEPS = 20
SHAPES = ((1, 4, 64, 64), (16, 4, 128, 128))


class Answer(nn.Module):
    """A network that costs nothing: it returns the same noise."""

    def __init__(self, eps: Tensor) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.eps


def main(threads: int, out: str | None) -> int:
    """Microseconds per step of DDIM and DPM-Solver++(2M), ours and diffusers', for two shapes."""
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for shape in SHAPES:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            net = Answer(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
            bare = best_of(lambda x=x, net=net: _bare(x, net))
            for name, solver in (("DDIM", DDIM()), ("DPM++2M", DPMpp2M())):
                ours = best_of(lambda x=x, net=net, solver=solver: _ours(x, net, solver)) - bare
                peer = best_of(lambda x=x, net=net, name=name: _diffusers(x, net, name)) - bare
                row = {
                    "shape": list(shape),
                    "solver": name,
                    "ours_us": ours / STEPS * 1e6,
                    "diffusers_us": peer / STEPS * 1e6,
                }
                rows.append(row | {"ratio": ours / peer})
    write({"bench": "overhead", "steps": STEPS, **machine(), "rows": rows}, out)
    return 0


def _bare(x: Tensor, net: nn.Module) -> None:
    label = torch.zeros(len(x))
    for _ in range(STEPS):
        net(x, label)


def _ours(x: Tensor, net: nn.Module, solver: Solver) -> Tensor:
    path = DDPM()
    return sample(Denoiser(net, path, Eps()).bind(), x, path, solver, Spaced("trailing")(path, STEPS))


def _diffusers(x: Tensor, net: nn.Module, name: str) -> Tensor:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    scheduler = _cached(name, DDIMScheduler if name == "DDIM" else DPMSolverMultistepScheduler)
    scheduler.set_timesteps(STEPS)
    label = torch.zeros(len(x))
    for t in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), label), t, x).prev_sample
    return x


_SCHEDULERS: dict[str, Any] = {}


def _cached(name: str, kind: type) -> Any:
    if name not in _SCHEDULERS:
        extra = {"clip_sample": False} if name == "DDIM" else {}
        _SCHEDULERS[name] = kind(
            num_train_timesteps=1000,
            beta_start=1e-4,
            beta_end=0.02,
            beta_schedule="linear",
            timestep_spacing="trailing",
            **extra,
        )
    return _SCHEDULERS[name]
