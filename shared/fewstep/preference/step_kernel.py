"""A stochastic sampler as a policy: each of its steps is a Gaussian whose mean holds the network.

    x_{k+1} ~ N(mu(x_k), v_k I),     mu = c_k x_k + w_k E(x_k)  the solver's step without its noise,  v_k its variance
    log p(x_{k+1} | x_k) = -|x_{k+1} - mu|^2/(2 v_k) - D/2 log(2 pi v_k)

`log_probability` is the mean over the D dimensions, as in the public code of PSO and MixGRPO: a beta of the sum is D times one of the mean.
Steps without noise (the last one of most samplers) have no density and are left out.

shapes: x (B, ...), t and s (B,), states (B, n + 1, ...)
"""

import math

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.paths import Path, expand
from fewstep.solvers.base import Solver


def step_kernel(
    solver: Solver, path: Path, estimate: Estimate, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(mu (B, ...), standard deviation (B,)) of the step t -> s; solvers of one estimate per step. Differentiable in the estimate."""
    t, s = t.double(), s.double()
    stage = solver.stages(path, t, s, [torch.full_like(t, math.nan)] * solver.past)[0]
    std = torch.zeros_like(t) if stage.noise is None else stage.noise.expand(t.shape)
    if y is None:
        return solver.step(path, x, estimate, t, s), std
    b_t, b_s = (expand(path.schedule(v)[1], x) for v in (t, s))
    return solver.step(path, x - b_t * y, estimate, t, s) + b_s * y, std


def log_probability(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The mean over the dimensions of log N(x_next; mean, std^2), (B,)."""
    square = (x_next - mean).square().flatten(1).mean(1) / (2 * std.to(mean) ** 2)
    return -square - (std * math.sqrt(2 * math.pi)).log().to(mean)


def noisy_steps(student: Generator) -> list[int]:
    """Which of the student's own steps have noise.

    Raises:
        ValueError: none has.
    """
    path, times = student.denoiser.path, student.grid(student.denoiser.path, student.steps)
    rows = student.solver.plan(path, times)
    noisy = [k for k, row in enumerate(rows) if isinstance(row.noise, float) and row.noise > 0]
    if len(rows) != student.steps or not noisy:
        raise ValueError(
            f"{type(student.solver).__name__} in {student.steps} steps has no Gaussian steps: take a stochastic solver of one "
            "evaluation per step, such as GammaSampling, in at least 2 steps"
        )
    return noisy


@torch.no_grad()
def trajectory(student: Generator, noise: Tensor, cond: Cond, y: Tensor | None = None) -> Tensor:
    """The states of the student's own sampling from noise, its sample the last one: (B, n + 1, ...)."""
    return follow(student.denoiser.bind(cond, y), student, noise, y)


@torch.no_grad()
def noised_trajectory(student: Generator, x0: Tensor, y: Tensor | None = None) -> Tensor:
    """States that lead to x0: the student's steps with the data in place of its estimate, (B, n + 1, ...).

    Each has the law of x0 noised by the path, and with a GammaSampling(1) of independent noise.
    """
    path = student.denoiser.path

    def known(x: Tensor, t: float | Tensor) -> Estimate:
        a, b, s = (expand(v, x) for v in path.schedule(torch.as_tensor(t).expand(len(x)).double()))
        return Estimate(x0, (x - a * x0 - (0.0 if y is None else b * y)) / s)

    return follow(known, student, torch.randn_like(x0), y)


def follow(denoise: Denoise, student: Generator, noise: Tensor, y: Tensor | None) -> Tensor:
    """The states of the student's sampler with this denoiser, (B, n + 1, ...)."""
    path = student.denoiser.path
    times = student.grid(path, student.steps)
    x = student.begin(noise, y, float(times[0]))
    states = [x]
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        at, end = (torch.full((len(x),), v, dtype=torch.float64, device=x.device) for v in (t, s))
        mean, std = step_kernel(student.solver, path, denoise(x, at), x, at, end, y)
        x = mean + expand(std, x) * torch.randn_like(x)
        states.append(x)
    return torch.stack(states, 1)


def log_probabilities(
    policy: Generator, student: Generator, states: Tensor, steps: list[int], cond: Cond, y: Tensor | None = None
) -> Tensor:
    """log p(x_{k+1} | x_k) of the denoiser of `policy` in these steps of the student's sampler, (B, len(steps)).

    One evaluation of the network, on the states of all steps.
    """
    path, n = student.denoiser.path, len(steps)
    times = student.grid(path, student.steps).to(states.device)
    x, x_next = (states[:, [k + j for k in steps]].flatten(0, 1) for j in (0, 1))
    t, s = (times[[k + j for k in steps]].repeat(len(states)) for j in (0, 1))
    cond = {k: v.repeat_interleave(n, 0) for k, v in cond.items()}
    y = None if y is None else y.repeat_interleave(n, 0)
    estimate = policy.denoiser.bind(cond, y)(x, t)
    mean, std = step_kernel(student.solver, path, estimate, x, t, s, y)
    return log_probability(x_next, mean, std).unflatten(0, (len(states), n))
