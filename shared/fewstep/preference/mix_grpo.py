"""MixGRPO: a flow's sampler is an SDE inside a sliding window and an ODE outside, and the window's steps are the policy (arXiv:2507.21802).

    before the window   ODE steps                     x <- x + u dt
    inside              EulerMaruyama(FlowNoise)      x_{k+1} ~ N(mu_theta(x_k), g_k^2 |dt| I)
    after               ODE steps; Flash: DPM-Solver++(2M) in a share of the steps
    L = mean_k [ -min( rho_k A, clip(rho_k) A ) + kl |mu_theta - mu_ref|^2/(2 g_k^2 |dt|) ],  rho_k = exp(log p_theta - log p_old),
        A the reward relative to its group

log p is a mean over the dimensions, as is the divergence of the steps, so the clip is as narrow as 1e-4. The divergence is Flow-GRPO's
(arXiv:2505.05470); the public code has none, and follows a reward without limit off the data. The samples of a group share their condition
and their first noise. The window moves one step every `every` rollouts and starts again at the noisy end; it never reaches the last
step, whose noise would stay in the sample. Of each rollout's samples every update takes another part, as in the public code.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.generator import Generator
from fewstep.paths import expand
from fewstep.preference.aligner import Aligner
from fewstep.preference.clipped import clipped_loss, group_advantage
from fewstep.preference.experience import Experience
from fewstep.preference.rewards import Reward
from fewstep.preference.step_kernel import log_probability, step_kernel
from fewstep.sampling import sample
from fewstep.solvers import DDIM, DPMpp2M, EulerMaruyama
from fewstep.solvers.base import Solver
from fewstep.solvers.flow_noise import FlowNoise
from fewstep.train.shell import Batch, Terms


@dataclass(frozen=True)
class Window:
    """Which steps are the policy's: `size` of them, moved by `stride` every `every` rollouts, back to the start at the end.

    25 steps, size 4, stride 1 and every 25 in the public code.
    """

    size: int = 4
    stride: int = 1
    every: int = 25

    def first(self, rollout: int, steps: int) -> int:
        """The first step of the window in this rollout (0, 1, ...) of a sampler of so many steps.

        Raises:
            ValueError: a window that does not fit before the last step.
        """
        places = (steps - 1 - self.size) // self.stride + 1
        if self.size < 1 or self.stride < 1 or self.every < 1 or steps - 1 < self.size:
            raise ValueError(f"{self} does not fit before the last of {steps} steps")
        return rollout // self.every % places * self.stride


@dataclass(frozen=True)
class After(ABC):
    """How the trajectory goes on behind the window."""

    @abstractmethod
    def __call__(self, times: Tensor, solver: Solver) -> tuple[Tensor, Solver]:
        """(the student's times that are left (n + 1,), its solver) -> those that are taken."""


@dataclass(frozen=True)
class Unchanged(After):
    """By the student's own steps."""

    def __call__(self, times: Tensor, solver: Solver) -> tuple[Tensor, Solver]:
        return times, solver


@dataclass(frozen=True)
class Flash(After):
    """MixGRPO-Flash: DPM-Solver++(2M) in a share of the steps left, .4 in the public code, even in their index."""

    share: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"Flash takes a share in (0, 1] of the steps, not {self.share}")

    def __call__(self, times: Tensor, solver: Solver) -> tuple[Tensor, Solver]:
        left = len(times) - 1
        taken = torch.linspace(0, left, max(round(left * self.share), 1) + 1, dtype=torch.float64).round().long()
        return times[taken], DPMpp2M()


class MixGRPO(Aligner):
    """The remaining arguments are those of `Aligner`; the student is sampled by the ODE alone.

    Args:
        group: samples of a condition, 12 in the public code; a batch of B gives B/group conditions.
        window: of the SDE; after: what follows it.
        eta: of the noise; clip: of the ratios; kl: factor of the steps' divergence from the reference.
        shared_noise: the samples of a group begin at one noise.
        updates: of each rollout, on as many parts of its samples, 4 in the public code.
    Raises:
        ValueError: a window that does not fit, groups that do not divide the batch.
    """

    sampler = DDIM()
    keeps = True

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        reward: Reward,
        steps: int = 25,
        group: int = 12,
        window: Window = Window(),
        after: After = Unchanged(),
        eta: float = 0.7,
        clip: float = 1e-4,
        kl: float = 0.0,
        shared_noise: bool = True,
        updates: int = 4,
        **kwargs: Any,
    ) -> None:
        if updates < 1:
            raise ValueError(f"a rollout is used for at least 1 update, not {updates}")
        super().__init__(teacher, iterations, reward, steps=steps, **kwargs)
        window.first(0, steps)
        self.group, self.window, self.after, self.clip, self.kl = group, window, after, clip, kl
        self.shared_noise, self.updates, self.held = shared_noise, updates, Experience()
        self.times = self.student.grid(self.student.denoiser.path, steps)
        self.sde = EulerMaruyama(FlowNoise(eta, self.times[1].item()))

    def loss(self, batch: Batch) -> Terms:
        """One update, on its part of the newest rollout."""
        turn = self.done % self.updates
        if turn == 0:
            self.held.hold(self.rollout(batch))
        rows = self.held.rows(slice(turn, None, self.updates))
        first = self.window.first(self.done // self.updates, self.student.steps)
        cond = {k.removeprefix("cond_"): v for k, v in rows.items() if k.startswith("cond_")}
        steps = self.kernels(self.student, rows["states"], first, cond, rows.get("y"))
        ratio = log_probabilities(rows["states"], steps) - rows["log_p"]
        losses = {"grpo": clipped_loss(ratio, rows["advantage"][:, None].expand_as(ratio), self.clip).mean()}
        if self.kl:
            with torch.no_grad():
                before = self.kernels(self.reference, rows["states"], first, cond, rows.get("y"))
            losses["kl"] = self.kl * divergence(steps, before).mean()
        self.values |= {"train/window": float(first), "train/reward": rows["reward"].mean()}
        self.values["train/clipped"] = (ratio.expm1().abs() > self.clip).float().mean()
        return losses

    @torch.no_grad()
    def rollout(self, batch: Batch) -> dict[str, Tensor]:
        """Samples in groups: the window's states (B, size + 1, ...), their log p (B, size), reward and advantage (B,), conditions, shuffled."""
        x0, cond, y = self.student.prepare(batch)
        if len(x0) % self.group:
            raise ValueError(f"groups of {self.group} do not divide a batch of {len(x0)}")
        count = len(x0) // self.group
        cond, y = {k: self.grouped(v) for k, v in cond.items()}, None if y is None else self.grouped(y)
        noise = torch.randn_like(x0)
        noise = noise[:count].repeat_interleave(self.group, 0) if self.shared_noise else noise
        f, path, solver = self.student.denoiser.bind(cond, y), self.student.denoiser.path, self.student.solver
        first = self.window.first(self.done // self.updates, self.student.steps)
        end, x = first + self.window.size, self.student.begin(noise, y, float(self.times[0]))
        x = sample(f, x, path, solver, self.times[: first + 1], y) if first else x
        states, steps = [x], []
        for k in range(first, end):
            mean, std = self.kernel(self.student, x, k, cond, y)
            x = mean + expand(std, x) * torch.randn_like(x)
            states.append(x)
            steps.append((mean, std))
        left, then = self.after(self.times[end:], solver)
        worth = self.reward(sample(f, x, path, then, left, y), cond)
        kept = torch.stack(states, 1)
        rows = {"states": kept, "log_p": log_probabilities(kept, steps), "reward": worth}
        rows |= {"advantage": group_advantage(worth, self.group)} | {f"cond_{k}": v for k, v in cond.items()}
        order = torch.randperm(len(x0), device=x0.device)
        return {k: v[order] for k, v in (rows if y is None else rows | {"y": y}).items()}

    def grouped(self, v: Tensor) -> Tensor:
        """The first of the rows, each for a whole group."""
        return v[: len(v) // self.group].repeat_interleave(self.group, 0)

    def kernel(self, policy: Generator, x: Tensor, k: int, cond: Cond, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the SDE's step k from x."""
        t, s = (v.to(x.device).expand(len(x)) for v in self.times[k : k + 2])
        path = policy.denoiser.path
        return step_kernel(self.sde, path, policy.denoiser.bind(cond, y)(x, t), x, t, s, y)

    def kernels(
        self, policy: Generator, states: Tensor, first: int, cond: Cond, y: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Those of the window's steps, from states (B, size + 1, ...)."""
        return [self.kernel(policy, states[:, k], first + k, cond, y) for k in range(self.window.size)]


def log_probabilities(states: Tensor, steps: list[tuple[Tensor, Tensor]]) -> Tensor:
    """log p of states (B, n + 1, ...) in n steps, (B, n)."""
    return torch.stack([log_probability(states[:, k + 1], *step) for k, step in enumerate(steps)], 1)


def divergence(steps: list[tuple[Tensor, Tensor]], before: list[tuple[Tensor, Tensor]]) -> Tensor:
    """KL of Gaussian steps of the same deviations, mean over the dimensions, (B, n)."""
    pairs = zip(steps, before, strict=True)
    return torch.stack([(m - m0).square().flatten(1).mean(1) / (2 * std.to(m) ** 2) for (m, std), (m0, _) in pairs], 1)
