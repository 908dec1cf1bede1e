"""What keeps a critic smooth: penalty(critic, x, logits) -> (B,), critic: x (B, ...) -> logits (B, n), x what the critic sees of real data.

logits: the critic's at x, which are known where it is trained on them; those that need them evaluate the critic themselves where not given.

    R1             weight/2 |d D / dx|^2, D the mean of a sample's logits                (arXiv:1801.04406)
    ApproximateR1  weight/2 E (D(x + sigma n) - D(x))^2 / sigma^2, which is R1 for small sigma, without a second derivative (arXiv:2501.08316)

The difference is taken of what the critic is given, so of the noised sample: the clean one perturbed is, at large noise, no change at all, and
comparing a noised with a clean one (as a public code does) is a penalty on something else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.discriminators.losses import per_sample

Critic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Penalty(ABC):
    """weight: its factor; every: so many iterations lie between two penalties, which then weigh that much more (lazy regularisation)."""

    weight: float = 1.0
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"a penalty comes every so many iterations, at least 1, not {self.every}")

    @abstractmethod
    def __call__(self, critic: Critic, x: Tensor, logits: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class R1(Penalty):
    """By a second derivative: critics need twice differentiable layers."""

    def __call__(self, critic: Critic, x: Tensor, logits: Tensor | None = None) -> Tensor:
        x = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(per_sample(critic(x)).sum(), x, create_graph=True)
        return self.weight / 2 * slope.square().flatten(1).sum(1)


@dataclass(frozen=True)
class ApproximateR1(Penalty):
    """By a difference along one random direction per sample."""

    sigma: float = 0.01

    def __call__(self, critic: Critic, x: Tensor, logits: Tensor | None = None) -> Tensor:
        x, rounded = x.detach(), torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 the difference is mostly rounding
            still = critic(x) if logits is None or rounded else logits
            moved = per_sample(critic(x + self.sigma * torch.randn_like(x))) - per_sample(still)
        return self.weight / 2 * (moved / self.sigma).square()
