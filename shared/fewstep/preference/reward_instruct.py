"""Reward-Instruct, first called R0: a few-step generator from rewards alone, without a distillation loss (arXiv:2503.13070).

    p(theta) ~ p_0(theta) exp(R(theta)/beta),  p_0 = N(theta_0, .):  ascent of R = E sum_i w_i r_i(x0), and a pull to the base weights
    L = -sum_i w_i <sg g_i, x0> / rms|g_i|  +  pull/2 |theta - theta_0|^2,    g_i = d r_i/d x0
    Langevin   theta <- theta - lr dL + sqrt(2 lr temperature) xi

Dividing by the root mean square of |g_i| over the batch, no reward drowns another. Against rewards that are hacked: the rollout's noise
is random (gamma ~ U[low, high] anew in each iteration), and the x0 of every step is judged, not that of the last alone. theta_0 is a base model
or a student, rolled out in its K steps; the gradient passes through all. The paper's weights, noise and way of normalising are not published.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.preference.aligner import Aligner
from fewstep.preference.rewards import Reward, weighed
from fewstep.sampling import Callback
from fewstep.solvers import GammaSampling
from fewstep.solvers.base import Row
from fewstep.train.shell import Batch, Terms


class _Estimates(Callback):
    """Keeps the x0 of every step."""

    def __init__(self) -> None:
        self.x0: list[Tensor] = []

    def on_estimate(self, x: Tensor, estimate: Estimate, row: Row) -> Estimate:
        self.x0.append(estimate.x0)
        return estimate


def ascent(x0: Tensor, cond: Cond, reward: Reward) -> Tensor:
    """-sum_i w_i <sg g_i, x0>/rms|g_i|, (B,); x0: (B, ...)."""
    total = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    for weight, one in weighed(reward):
        free = x0.detach().requires_grad_()
        with torch.enable_grad():
            (g,) = torch.autograd.grad(one(free, cond).sum(), free)
        rms = g.flatten(1).square().sum(1).mean().sqrt().clamp_min(1e-12)
        total = total - weight * (g / rms * x0).flatten(1).sum(1)
    return total


def distance_squared(network: nn.Module, base: nn.Module) -> Tensor:
    """|theta - theta_0|^2 over the parameters that are trained, ()."""
    held = dict(base.named_parameters())
    return torch.stack([(p - held[k]).square().sum() for k, p in network.named_parameters() if p.requires_grad]).sum()


@torch.no_grad()
def langevin(parameters: Iterable[nn.Parameter], lr: float, temperature: float) -> None:
    """theta <- theta + sqrt(2 lr temperature) xi: with plain gradient steps of L, samples of exp(-L/temperature)."""
    for p in parameters:
        if p.requires_grad:
            p.add_(torch.randn_like(p), alpha=(2 * lr * temperature) ** 0.5)


class RewardInstruct(Aligner):
    """The remaining arguments are those of `Aligner`.

    Args:
        pull: of the base weights; temperature: of the Langevin noise, none unless given.
        gamma: the range of the rollout's noise, see `GammaSampling`.
        intermediate: judge the x0 of every step, or that of the last one alone.
    Raises:
        ValueError: a range of gamma outside [0, 1].
    """

    sampler = GammaSampling(1.0)

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        reward: Reward,
        steps: int = 4,
        pull: float = 0.0,
        temperature: float = 0.0,
        gamma: tuple[float, float] = (0.0, 1.0),
        intermediate: bool = True,
        **kwargs: Any,
    ) -> None:
        low, high = gamma
        if not 0 <= low <= high <= 1:
            raise ValueError(f"gamma is drawn from a range in [0, 1], not from {tuple(gamma)}")
        super().__init__(teacher, iterations, reward, steps=steps, **kwargs)
        self.pull, self.temperature, self.gamma, self.intermediate = pull, temperature, (low, high), intermediate

    def loss(self, batch: Batch) -> Terms:
        """The ascent of the rewards of every x0 of the rollout, and the pull."""
        x0, cond, y = self.student.prepare(batch)
        low, high = self.gamma
        solver, seen = GammaSampling(low + (high - low) * torch.rand(()).item()), _Estimates()
        self.student.generate(torch.randn_like(x0), cond, y, solver=solver, callbacks=[seen])
        judged = seen.x0 if self.intermediate else seen.x0[-1:]
        self.values["train/reward_of_x0"] = self.reward(judged[-1].detach(), cond).mean()
        terms = {"reward": torch.stack([ascent(v, cond, self.reward).mean() for v in judged]).mean()}
        if self.pull:
            terms["pull"] = self.pull / 2 * distance_squared(self.student, self.reference)
        return terms

    def after_step(self) -> None:
        """The Langevin noise."""
        if self.temperature:
            optimizer = self.optimizers()
            assert not isinstance(optimizer, list)
            langevin(self.student.parameters(), optimizer.param_groups[0]["lr"], self.temperature)
