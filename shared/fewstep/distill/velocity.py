"""The velocity dx_t/dt that a loss follows: of the pair (x0, eps), or of the teacher.

data      u = a' x0 + b' y + s' eps,                    whose mean over the pairs of x_t is the flow of the data
teacher   the same with the teacher's x0 and eps at x_t: that mean itself, guided where it is
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.paths import Path


@dataclass(frozen=True)
class Velocity(ABC):
    """(teacher, path, x0, eps, x_t, t, y) -> dx_t/dt, (B, ...), without gradient; times (B,)."""

    @abstractmethod
    def __call__(
        self, teacher: Denoise, path: Path, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, y: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class OfData(Velocity):
    """Of the pair: training without a teacher."""

    def __call__(
        self, teacher: Denoise, path: Path, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, y: Tensor | None = None
    ) -> Tensor:
        return path.velocity(x0, eps, t, y)


@dataclass(frozen=True)
class OfTeacher(Velocity):
    """Of the teacher: distillation, one evaluation of it."""

    @torch.no_grad()
    def __call__(
        self, teacher: Denoise, path: Path, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, y: Tensor | None = None
    ) -> Tensor:
        estimate = teacher(x_t, t)
        return path.velocity(estimate.x0, estimate.eps, t, y)


def require_straight(path: Path, method: str) -> None:
    """Raise unless a, b and s are linear in t, so that a jump is x - (t - s) u.

    Raises:
        ValueError: on other paths; `converted.on_path` takes their networks to a rectified flow.
    """
    t = torch.linspace(path.t_min, path.t_max, 5, dtype=torch.float64)[1:-1]
    if any((v - v[0]).abs().max() > 1e-9 for v in path.rates(t)):
        raise ValueError(
            f"{method} needs a straight path (a, b and s linear in t, as RectifiedFlow and EDM), not {path}"
        )
