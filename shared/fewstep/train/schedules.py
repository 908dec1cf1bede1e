"""Learning-rate schedules as pure functions of (iteration, iterations): nothing to save, nothing to drift on resume."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule(ABC):
    """Factor on the base learning rate."""

    @abstractmethod
    def __call__(self, iteration: int, iterations: int) -> float: ...


@dataclass(frozen=True)
class Constant(Schedule):
    """Linear warm-up over `warmup` iterations, then 1."""

    warmup: int = 0

    def __call__(self, iteration: int, iterations: int) -> float:
        return min(1.0, (iteration + 1) / (self.warmup + 1))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up, then half a cosine from 1 towards `end`, reached after the last iteration (arXiv:1608.03983 without restarts)."""

    warmup: int = 0
    end: float = 0.0

    def __call__(self, iteration: int, iterations: int) -> float:
        if iteration < self.warmup:
            return (iteration + 1) / (self.warmup + 1)
        done = (iteration - self.warmup) / max(1, iterations - self.warmup)
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
