"""Adaptive projected guidance (arXiv:2410.02416): large scales without oversaturation. 2 NFE per step.

    D = out_c - out_u + momentum D_previous             reverse momentum where negative
    D = D min(1, threshold/|D|)
    D_par = <D, out_c>/|out_c|^2 out_c
    out = out_c + (cfg - 1)(D - D_par + eta D_par)

threshold = inf, momentum = 0, eta = 1 is CFG.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.guidance.inner import along, dot
from fewstep.guidance.rule import Branches, Mix, Rule
from fewstep.guidance.schedules import Scale, weight
from fewstep.prediction import X0, Prediction


@dataclass(frozen=True)
class APG(Rule):
    """Remembers D from step to step within a trajectory.

    eta: weight of the part parallel to the conditional output, which saturates; 0 in the paper.
    threshold: largest norm of D; depends on the data (2.5 for EDM2 and ACE-Step, 15 for SDXL), so it is off by default.
    momentum: -0.75 or -0.5 in the paper.
    space: the output projected, the data in the paper; ACE-Step projects its velocity.
    dims: over which norms and products are taken, None for whole samples; ACE-Step takes (-2, -1).
    """

    cfg: Scale
    eta: float = 0.0
    threshold: float = math.inf
    momentum: float = -0.5
    space: Prediction = X0()  # noqa: RUF009 (frozen)
    dims: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"APG's threshold is a norm > 0, got {self.threshold}")

    def begin(self) -> Mix:
        past: Tensor | None = None

        def mix(at: Branches) -> Estimate:
            nonlocal past
            c, u = at(0, 1)
            out = at.output(c, self.space)
            d = out - at.output(u, self.space)
            if past is not None and self.momentum != 0.0:
                d = d + self.momentum * past
            past = d
            if self.threshold < math.inf:
                d = d * (self.threshold / dot(d, d, self.dims).sqrt()).clamp(max=1.0)
            if self.eta != 1.0:
                d = d + (self.eta - 1) * along(d, out, dims=self.dims) * out
            return at.moved(c, (weight(self.cfg, at.t, at.x) - 1) * d, self.space)

        return mix
