"""Residual CFG (StreamDiffusion, arXiv:2312.12491): an unconditional branch that costs nothing.

The unconditional x0 is taken to be a fixed image, so that its noise is the residual of the state:

    eps_u = delta (x_t - b y - a x_ref)/s           eps = eps_u + cfg (eps_c - eps_u)

    self       x_ref is the input (zero when starting from noise)                  1 NFE per step
    onetime    x_ref is x0_u of the first step, evaluated there once               n + 1 NFE for n steps

The official code propagates eps_u from step to step through its own sampler; that recursion is this closed form up to
the consistency model's boundary coefficients, c_out + a c_skip being 1 but close to t = 0. The closed form serves every
solver.
"""

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise
from fewstep.estimate import Estimate
from fewstep.guidance.cfg import CFGRule
from fewstep.guidance.guide import Branch, Model, broadcast
from fewstep.guidance.rule import Mixed, Rule, forward_prepare
from fewstep.guidance.schedules import Scale
from fewstep.paths import Path, expand


class Recalled:
    """A bound denoiser that always answers x_ref (delta = 1), or noise scaled by delta.

    Args:
        path: of the states.
        x_ref: (B, ...), zero where not given.
        first: instead of x_ref, a denoiser whose x0 at the first call of each trajectory becomes x_ref.
    """

    def __init__(
        self,
        path: Path,
        x_ref: Tensor | None = None,
        first: Denoise | None = None,
        delta: float = 1.0,
        y: Tensor | None = None,
    ) -> None:
        if x_ref is not None and first is not None:
            raise ValueError("Recalled takes x_ref or the denoiser that gives it, not both")
        self.path, self.x_ref, self.first, self.delta, self.y = path, x_ref, first, delta, y

    @property
    def cost(self) -> int:
        """Evaluations that the next call makes."""
        return int(self.first is not None and self.x_ref is None)

    def prepare(self, times: tuple[float, ...], x: Tensor) -> None:
        """Forget the x_ref of the last trajectory."""
        if self.first is not None:
            self.x_ref = None
            forward_prepare(self.first, times, x)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if self.x_ref is None and self.first is not None:
            self.x_ref = self.first(x, t).x0
        if isinstance(t, Tensor):
            a, b, s = (expand(v, x) for v in self.path.schedule(t.double()))
        else:
            a, b, s = self.path.levels(t)
        ref = torch.zeros_like(x) if self.x_ref is None else self.x_ref
        xc = x if self.y is None else x - b * self.y
        # x0 = (xc - s eps)/a, written so that delta = 1 is finite at a = 0.
        x0 = ref if self.delta == 1.0 else self.delta * ref + (1 - self.delta) * xc / a
        return Estimate(x0, lambda: self.delta * (xc - a * ref) / s)


class ResidualCFG:
    """Denoiser in, denoiser out.

    Args:
        denoiser: the conditional model.
        cfg: guidance scale, or a rule over (conditional, residual).
        uncond: conditions for onetime; without them the reference is the input ("self").
        delta: strength of the virtual noise.
    """

    def __init__(
        self, denoiser: Model, cfg: Scale | Rule = 1.2, uncond: Cond | None = None, delta: float = 1.0
    ) -> None:
        self.denoiser, self.cfg, self.uncond, self.delta = denoiser, cfg, uncond, delta

    @property
    def path(self) -> Path:
        """The model's path."""
        return self.denoiser.path

    def bind(self, cond: Cond | None = None, y: Tensor | None = None, x_ref: Tensor | None = None) -> Mixed:
        """The guided callable; x_ref: the input in the space of the path, zero where not given."""
        first = None
        if self.uncond is not None:
            first = Branch(self.denoiser, broadcast(self.uncond, cond), y)
        rule = self.cfg if isinstance(self.cfg, Rule) else CFGRule(self.cfg)
        return Mixed(
            (Branch(self.denoiser, cond, y), Recalled(self.path, x_ref, first, self.delta, y)), rule, self.path
        )
