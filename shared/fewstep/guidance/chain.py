"""Several conditions, each with its own scale (InstructPix2Pix, arXiv:2211.09800; HuMo, arXiv:2509.08519).

    E = E_n + sum_i w_i (E_{i-1} - E_i)          n + 1 NFE per step for n conditions

Branch 0 has all conditions, each further one drops another, branch n has none. With schedules for w_i it is
time-adaptive guidance: text early, audio late. One condition is CFG.
"""

from dataclasses import dataclass

from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.guidance.rule import Branches, Mix, Rule, weighted
from fewstep.guidance.schedules import Scale, weight


@dataclass(frozen=True)
class Chain(Rule):
    """Scales in the order in which branches drop their conditions; a branch between equal scales is not evaluated."""

    scales: tuple[Scale, ...]

    def begin(self) -> Mix:
        return self.mix

    def mix(self, at: Branches) -> Estimate:
        """The guided estimate."""
        w = [weight(v, at.t, at.x) for v in self.scales]
        # Of branch i: w_i+1 - w_i, with w_0 = 0 before the first and 1 after the last.
        shares = [after - before for before, after in zip((0.0, *w), (*w, 1.0), strict=True)]
        used = [i for i, share in enumerate(shares) if isinstance(share, Tensor) or share != 0.0]
        return weighted(at(*used), [shares[i] for i in used])
