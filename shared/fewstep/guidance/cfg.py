"""Classifier-free guidance (arXiv:2207.12598): x0 = x0_u + cfg (x0_c - x0_u), and the same for eps. 2 NFE per step.

The conversion between predictions is affine with the same x for both branches, so guiding x0, eps, v or u is identical.
"""

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise, Denoiser
from fewstep.estimate import Estimate


class CFG:
    """Denoiser in, denoiser out. cfg = 1 means no guidance (and costs one evaluation).

    Args:
        denoiser: the conditional model.
        cfg: guidance scale.
        uncond: conditions of the unconditional branch, broadcast over the batch.
    """

    def __init__(self, denoiser: Denoiser, cfg: float, uncond: Cond) -> None:
        self.denoiser, self.cfg, self.uncond = denoiser, cfg, uncond

    def bind(self, cond: Cond | None = None, y: Tensor | None = None) -> Denoise:
        """The guided callable (x, t) -> Estimate."""
        conditional = self.denoiser.bind(cond, y)
        if self.cfg == 1.0:
            return conditional
        n = next((len(v) for v in (cond or {}).values()), None)
        uncond = {k: v if n is None else v.expand(n, *v.shape[1:]) for k, v in self.uncond.items()}
        return Guided(conditional, self.denoiser.bind(uncond, y), self.cfg)


class Guided:
    """Two bound denoisers mixed: u + cfg (c - u)."""

    def __init__(self, conditional: Denoise, unconditional: Denoise, cfg: float) -> None:
        self.conditional, self.unconditional, self.cfg = conditional, unconditional, cfg

    def prepare(self, times: tuple[float, ...], x: Tensor) -> None:
        """Pass the grid on to both branches."""
        for branch in (self.conditional, self.unconditional):
            if hasattr(branch, "prepare"):
                branch.prepare(times, x)  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        cond, uncond = self.conditional(x, t), self.unconditional(x, t)
        return uncond.map(lambda u, c: torch.lerp(u, c, self.cfg), cond)
