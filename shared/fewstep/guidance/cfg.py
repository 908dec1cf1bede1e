"""Classifier-free guidance (arXiv:2207.12598): x0 = x0_u + cfg (x0_c - x0_u), and the same for eps. 2 NFE per step.

The conversion between predictions is affine with the same x for both branches, so guiding x0, eps, v or u is identical.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise
from fewstep.estimate import Estimate
from fewstep.guidance.guide import Guide, Model
from fewstep.guidance.rule import Branches, Mix, Mixed, Rule
from fewstep.guidance.schedules import Scale, weight


@dataclass(frozen=True)
class CFGRule(Rule):
    """u + cfg (c - u). 2 NFE per step; 1 where cfg is 1, the conditional model."""

    cfg: Scale | Tensor

    def begin(self) -> Mix:
        return self.mix

    def mix(self, at: Branches) -> Estimate:
        """The guided estimate."""
        w = weight(self.cfg, at.t, at.x)
        if not isinstance(w, Tensor) and w == 1.0:
            return at(0)[0]
        c, u = at(0, 1)
        return u.map(lambda u, c: torch.lerp(u, c, w), c)


class CFG(Guide):
    """Denoiser in, denoiser out. cfg = 1 means no guidance (and costs one evaluation).

    Args:
        denoiser: the conditional model.
        cfg: guidance scale, or a schedule of it.
        uncond: conditions of the unconditional branch, broadcast over the batch.
        together: one call on 2B rows per step instead of two on B.
    """

    def __init__(self, denoiser: Model, cfg: Scale, uncond: Cond, together: bool = False) -> None:
        super().__init__(denoiser, CFGRule(cfg), (uncond,), together)
        self.cfg, self.uncond = cfg, uncond

    def bind(self, cond: Cond | None = None, y: Tensor | None = None) -> Denoise:
        """The guided callable (x, t) -> Estimate."""
        return self.denoiser.bind(cond, y) if self.cfg == 1.0 else super().bind(cond, y)


class Guided(Mixed):
    """Two bound denoisers mixed: u + cfg (c - u); cfg a number, a schedule, or one number per sample (B,)."""

    def __init__(self, conditional: Denoise, unconditional: Denoise, cfg: Scale | Tensor) -> None:
        super().__init__((conditional, unconditional), CFGRule(cfg))
        self.conditional, self.unconditional, self.cfg = conditional, unconditional, cfg
