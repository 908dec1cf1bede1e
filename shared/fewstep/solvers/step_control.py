"""How an adaptive solver turns the error of a trial step into its verdict and the next step.

ErrorControl    the paper of DPM-Solver (arXiv:2206.00927, appendix C)
PIDControl      k-diffusion's, which limits how fast the step changes
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Verdict(NamedTuple):
    """Whether the trial stands, the next step to try, and what the control remembers."""

    accept: bool
    h: float
    memory: tuple[float, ...]


class StepControl(ABC):
    """How an error becomes the next step; frozen dataclasses."""

    @abstractmethod
    def error(self, gap: Tensor) -> float:
        """E of gap = (higher - lower)/delta, (B, ...)."""

    @abstractmethod
    def judge(self, error: float, h: float, taken: float, order: float, memory: tuple[float, ...]) -> Verdict:
        """After a trial of step `taken`, which is h but where the end was nearer; memory is () at first."""


@dataclass(frozen=True)
class ErrorControl(StepControl):
    """The paper's: E is the largest of the samples' root mean squares; accept if E <= 1; h <- theta h E^(-1/k)."""

    theta: float = 0.9

    def error(self, gap: Tensor) -> float:
        return gap.flatten(1).square().mean(1).sqrt().max().item()

    def judge(self, error: float, h: float, taken: float, order: float, memory: tuple[float, ...]) -> Verdict:
        return Verdict(error <= 1, self.theta * taken * max(error, 1e-30) ** (-1 / order), memory)


@dataclass(frozen=True)
class PIDControl(StepControl):
    """k-diffusion's: E is the root mean square over the batch. With e = 1/E of this and the last two accepted steps,

    f = 1 + atan(e^((p + i + d)/k) e_1^(-(p + 2 d)/k) e_2^(d/k) - 1),   accept if f >= safety,   h <- f h
    """

    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    safety: float = 0.81

    def error(self, gap: Tensor) -> float:
        return gap.square().mean().sqrt().item()

    def judge(self, error: float, h: float, taken: float, order: float, memory: tuple[float, ...]) -> Verdict:
        e = 1 / (error + 1e-8)
        e1, e2 = memory or (e, e)
        powers = (self.p + self.i + self.d) / order, -(self.p + 2 * self.d) / order, self.d / order
        factor = 1 + math.atan(e ** powers[0] * e1 ** powers[1] * e2 ** powers[2] - 1)
        accept = factor >= self.safety
        return Verdict(accept, h * factor, (e, e1) if accept else (e1, e2))
