"""Pairwise sample optimisation of few-step students (PSO, arXiv:2410.03190).

    L = -log sigmoid( beta sum_k [ log p_theta(x^w_{k+1} | x^w_k)/p_ref - log p_theta(x^l_{k+1} | x^l_k)/p_ref ] )

p: the Gaussian steps of the student's own sampler at its own few times (step_kernel.py), ref: the student before training. So it remains a
few-step sampler, which the denoising loss of Diffusion-DPO (arXiv:2311.12908) would undo.

    online     x^w, x^l are trajectories of the current student, ranked by the reward of their samples
    offline    x^w is data and x^l the reference's sample, or both are samples of the reference, ranked (DPO); each is noised
               along the student's times

The sum over k is that of the likelihood of a trajectory, whose optimum under Bradley-Terry preferences of scale 1 is the tilt
p_ref exp(r D/beta) of trajectories. The public code takes the steps one by one, and clips their ratios.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fewstep.generator import Generator, Prepared
from fewstep.per_sample import like
from fewstep.preference.aligner import Aligner
from fewstep.preference.rewards import Reward
from fewstep.preference.step_kernel import log_probabilities, noised_trajectory, noisy_steps, trajectory
from fewstep.solvers import GammaSampling
from fewstep.train.shell import Batch, Terms


def pso_loss(winner: Tensor, loser: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (winner - loser)), (B,); both (B,): sums over the steps of log p_theta - log p_ref."""
    return -logsigmoid(beta * (winner - loser))


@dataclass(frozen=True)
class Preference(ABC):
    """(rewards of the first samples, of the second ones) -> (B,) bool: the first is preferred."""

    @abstractmethod
    def __call__(self, first: Tensor, second: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Higher(Preference):
    """The higher reward is preferred: all public pipelines with a reward model."""

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return first >= second


@dataclass(frozen=True)
class BradleyTerry(Preference):
    """Preferred with probability sigmoid((r_1 - r_2)/scale): the model of people that the DPO loss assumes, under which it has a finite optimum."""

    scale: float = 1.0

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.rand_like(first) < ((first - second) / self.scale).sigmoid()


@dataclass(frozen=True)
class PairSource(ABC):
    """(student, reference, a batch, rewards) -> states of winners and losers, each (B, n + 1, ...)."""

    @abstractmethod
    def __call__(
        self, student: Generator, reference: Generator, data: Prepared, reward: Reward
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Online(PairSource):
    """Two trajectories of the current student for each condition."""

    preference: Preference = Higher()

    def __call__(
        self, student: Generator, reference: Generator, data: Prepared, reward: Reward
    ) -> tuple[Tensor, Tensor]:
        one, other = (trajectory(student, torch.randn_like(data.x0), data.cond, data.y) for _ in range(2))
        first = like(self.preference(*(reward(v[:, -1], data.cond) for v in (one, other))), one)
        return torch.where(first, one, other), torch.where(first, other, one)


@dataclass(frozen=True)
class OfflineRanked(PairSource):
    """Two samples of the reference for each condition, ranked, noised along the student's times: offline preferences, DPO of few steps."""

    preference: Preference = Higher()

    def __call__(
        self, student: Generator, reference: Generator, data: Prepared, reward: Reward
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            one, other = (reference.generate(torch.randn_like(data.x0), data.cond, data.y) for _ in range(2))
        first = like(self.preference(*(reward(v, data.cond) for v in (one, other))), one)
        ranked = torch.where(first, one, other), torch.where(first, other, one)
        winner, loser = (noised_trajectory(student, v, data.y) for v in ranked)
        return winner, loser


@dataclass(frozen=True)
class Offline(PairSource):
    """Data wins against a sample of the reference; no reward is asked for. Style and concept tuning, or stored preferences."""

    def __call__(
        self, student: Generator, reference: Generator, data: Prepared, reward: Reward
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            sample = reference.generate(torch.randn_like(data.x0), data.cond, data.y)
        return noised_trajectory(student, data.x0, data.y), noised_trajectory(student, sample, data.y)


class PSO(Aligner):
    """The remaining arguments are those of `Aligner`.

    Args:
        pairs: where winners and losers come from.
        beta: how much likelihood a preference is worth, 50 in the public code; log p is a mean over the dimensions.
        clip: ratios p_theta/p_ref of a step are held within 1 -+ clip, as in the public code; None: not at all.
    Raises:
        ValueError: a sampler without Gaussian steps, clip outside (0, 1).
    """

    sampler = GammaSampling(1.0)

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        reward: Reward,
        steps: int = 4,
        pairs: PairSource = Online(),
        beta: float = 50.0,
        clip: float | None = None,
        **kwargs: Any,
    ) -> None:
        if clip is not None and not 0 < clip < 1:
            raise ValueError(f"ratios are held within 1 -+ clip, 0 < clip < 1, not {clip}")
        super().__init__(teacher, iterations, reward, steps=steps, **kwargs)
        self.pairs, self.beta, self.clip = pairs, beta, clip
        self.noisy = noisy_steps(self.student)

    def loss(self, batch: Batch) -> Terms:
        """pso_loss of pairs of trajectories."""
        data = self.student.prepare(batch)
        winner, loser = (
            self.gain(states, data) for states in self.pairs(self.student, self.reference, data, self.reward)
        )
        self.values["train/margin"] = (winner - loser).detach().mean()
        return {"pso": pso_loss(winner, loser, self.beta).mean()}

    def gain(self, states: Tensor, data: Prepared) -> Tensor:
        """sum_k log p_theta/p_ref of trajectories (B, n + 1, ...), (B,)."""
        own = log_probabilities(self.student, self.student, states, self.noisy, data.cond, data.y)
        with torch.no_grad():
            before = log_probabilities(self.reference, self.student, states, self.noisy, data.cond, data.y)
        ratio = own - before
        return (ratio if self.clip is None else ratio.clamp(math.log1p(-self.clip), math.log1p(self.clip))).sum(1)
