"""Adaptive Guidance (arXiv:2312.12487): once the branches agree, stop guiding. 2 NFE per step, then 1.

After the first step with cos(eps_c, eps_u) > threshold a sample uses eps_c alone for the rest of the trajectory. The
paper saves about a quarter of the evaluations at equal quality; `Mixed.saved` tells how many were saved here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.guidance.inner import cosine
from fewstep.guidance.rule import Branches, Mix, Rule
from fewstep.guidance.schedules import Scale, weight
from fewstep.solvers.base import Half


@dataclass(frozen=True)
class AdaptiveGuidance(Rule):
    """CFG for as long as the branches differ, sample by sample: branch 1 runs on the rows that still need it.

    The step that finds the agreement is still guided, its evaluation being spent. threshold >= 1 is CFG.

    half: of which estimate the angle is taken, eps in the paper. At the noisy end both eps are the state itself and may
    agree before guidance has begun (exact models do); x0 does not.
    """

    cfg: Scale
    threshold: float = 0.991
    half: Half = "eps"

    def begin(self) -> Mix:
        active: Tensor | None = None  # rows still guided; None before the first step

        def mix(at: Branches) -> Estimate:
            nonlocal active
            rows = torch.arange(len(at.x), device=at.x.device) if active is None else active
            if len(rows) == 0:
                return at(0)[0]
            w = weight(self.cfg, at.t, at.x)
            if len(rows) == len(at.x):
                c, u = at(0, 1)
                active = rows[~(self._cosine(c, u) > self.threshold)]
                return u.map(lambda u, c: torch.lerp(u, c, w), c)
            c, u = at(0)[0], at.part(1, rows)
            active = rows[~(self._cosine(c, u, rows) > self.threshold)]
            w = w[rows] if isinstance(w, Tensor) else w
            return u.map(lambda u, c: c.index_copy(0, rows, u + w * (c[rows] - u)), c)

        return mix

    def _cosine(self, c: Estimate, u: Estimate, rows: Tensor | slice = slice(None)) -> Tensor:
        return cosine(c.eps[rows], u.eps) if self.half == "eps" else cosine(c.x0[rows], u.x0)
