"""Guidance of frames in flight (StreamDiffusion's residual CFG, arXiv:2312.12491), D = D_u + cfg (D_c - D_u).

    Unguided          D_c                                                                                  n evaluations for n frames
    SelfResidual      D_u is the frame's input: eps_u = delta (x_t - a x_in)/s                             n
    OnetimeResidual   D_u is the unconditional x0 of the frame where it came in, kept for its later steps  n + 1
    Full              D_u is the network's                                                                 2 n

The closed form of the residual is that of fewstep/guidance/residual.py; here every frame has its own reference, which moves along with it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoiser
from fewstep.estimate import Estimate
from fewstep.guidance.residual import Recalled


@dataclass(frozen=True)
class StreamGuidance(ABC):
    """How the frames in flight are guided."""

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Cond, without: Cond, refs: Tensor
    ) -> tuple[Estimate, Tensor]:
        """(the guided estimate of x (n, ...) at t (n,), the frames' references after it).

        without: the conditions of the unconditional branch; refs: (n, ...), of the newest frame, the first, its input.
        """


@dataclass(frozen=True)
class Unguided(StreamGuidance):
    """One evaluation for each frame."""

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Cond, without: Cond, refs: Tensor
    ) -> tuple[Estimate, Tensor]:
        return denoiser(x, t, cond), refs


@dataclass(frozen=True)
class SelfResidual(StreamGuidance):
    """cfg: scale, 1 is none; delta: strength of the virtual noise."""

    cfg: float = 1.2
    delta: float = 1.0

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Cond, without: Cond, refs: Tensor
    ) -> tuple[Estimate, Tensor]:
        return self.away(denoiser, x, t, denoiser(x, t, cond), refs), refs

    def away(self, denoiser: Denoiser, x: Tensor, t: Tensor, own: Estimate, refs: Tensor) -> Estimate:
        """The estimate guided away from these references."""
        return mixed(own, Recalled(denoiser.path, refs, None, self.delta)(x, t), self.cfg)


@dataclass(frozen=True)
class OnetimeResidual(SelfResidual):
    """One evaluation more, of the newest frame without its condition."""

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Cond, without: Cond, refs: Tensor
    ) -> tuple[Estimate, Tensor]:
        more = {k: torch.cat([v, without[k][:1]]) for k, v in cond.items()}
        both = denoiser(torch.cat([x, x[:1]]), torch.cat([t, t[:1]]), more)
        own = Estimate(both.x0[:-1], both.eps[:-1])
        refs = torch.cat([both.x0[-1:], refs[1:]])
        return self.away(denoiser, x, t, own, refs), refs


@dataclass(frozen=True)
class Full(StreamGuidance):
    """Ordinary guidance."""

    cfg: float = 1.2

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Cond, without: Cond, refs: Tensor
    ) -> tuple[Estimate, Tensor]:
        more = {k: torch.cat([v, without[k]]) for k, v in cond.items()}
        both = denoiser(torch.cat([x, x]), torch.cat([t, t]), more)
        (x0, x0_u), (eps, eps_u) = both.x0.chunk(2), both.eps.chunk(2)
        return mixed(Estimate(x0, eps), Estimate(x0_u, eps_u), self.cfg), refs


def mixed(own: Estimate, other: Estimate, cfg: float) -> Estimate:
    """other + cfg (own - other), of x0 and of eps."""
    return Estimate(torch.lerp(other.x0, own.x0, cfg), torch.lerp(other.eps, own.eps, cfg))
