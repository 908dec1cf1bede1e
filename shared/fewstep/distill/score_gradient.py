"""Gradients that are given to samples directly, and their weights (score distillation; block P).

    loss = 1/2 |x0 - sg(x0 - g)|^2 summed over a sample, divided by its dimension:    d loss / d x0 = g / D

g = weight (D_psi - D_phi), psi the score of the student's samples, phi the teacher. In the scores of x_t = a x0 + s eps this is
weight (s^2/a) (s_psi - s_phi), and the gradient of KL(p_t || q_t) is E[(s_psi - s_phi) a dx0] (Diff-Instruct, arXiv:2305.18455), so
that weight = SNR is the reverse Kullback-Leibler divergence at t.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distill.weighting import MaxSNR, Weighting
from fewstep.paths import Path, expand


def projected(x0: Tensor, g: Tensor) -> Tensor:
    """(B,) whose gradient with respect to x0: (B, ...) is g / D; half the mean square of g."""
    return 0.5 * (x0 - (x0 - g).detach()).square().flatten(1).mean(1)


@dataclass(frozen=True)
class ScoreWeight(ABC):
    """(x0, teacher's x0, t, path) -> (B,) in the dtype of x0, without gradient: the weight of D_psi - D_phi."""

    @abstractmethod
    def __call__(self, x0: Tensor, teacher: Tensor, t: Tensor, path: Path) -> Tensor: ...


@dataclass(frozen=True)
class ByTeacherError(ScoreWeight):
    """1 / mean |x0 - D_phi| over the sample: DMD (arXiv:2311.18828, eq. 8), SiD."""

    def __call__(self, x0: Tensor, teacher: Tensor, t: Tensor, path: Path) -> Tensor:
        return 1 / (x0 - teacher).detach().abs().flatten(1).mean(1).clamp_min(1e-5)


@dataclass(frozen=True)
class ByTime(ScoreWeight):
    """A function of t alone. weighting: SNR is the reverse KL of x_t."""

    weighting: Weighting = MaxSNR(0.0)

    def __call__(self, x0: Tensor, teacher: Tensor, t: Tensor, path: Path) -> Tensor:
        return self.weighting(t, torch.full_like(t, path.t_min), path).to(x0)


@dataclass(frozen=True)
class NoiseDifference(ScoreWeight):
    """a s: s^2 (eps_phi - eps_psi) with SwiftBrush's weight s_t^2 (arXiv:2312.05239)."""

    def __call__(self, x0: Tensor, teacher: Tensor, t: Tensor, path: Path) -> Tensor:
        a, _, s = path.schedule(t.double())
        return (a * s).to(x0)


def score_gradient(x0: Tensor, fake: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """weight (D_psi - D_phi), (B, ...); `projected` lets no gradient through it."""
    return expand(weight, x0) * (fake - teacher)
