"""CFG rescale (arXiv:2305.08891, section 3.4): the guided output gets the deviation of the conditional one.

out_g <- (phi std(out_c)/std(out_g) + 1 - phi) out_g          std over all elements of a sample; NFE of the rule
"""

from dataclasses import dataclass

from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.guidance.inner import per_sample
from fewstep.guidance.rule import Branches, Mix, Rule
from fewstep.prediction import X0, Prediction


@dataclass(frozen=True)
class Rescale(Rule):
    """Against the overexposure of large scales; phi = 0 is the rule alone, 1 matches the deviation.

    space: which output is rescaled. The paper means the network's own, so give its prediction to reproduce published
    samples; the default rescales the data.
    """

    rule: Rule
    phi: float = 0.7
    space: Prediction = X0()  # noqa: RUF009 (frozen)

    def begin(self) -> Mix:
        inner = self.rule.begin()

        def mix(at: Branches) -> Estimate:
            guided, (c,) = inner(at), at(0)
            out = at.output(guided, self.space)
            ratio = _std(at.output(c, self.space)) / _std(out)
            # (phi ratio + 1 - phi) out as a change of out; a constant output has no deviation to match.
            change = per_sample(self.phi * (ratio.nan_to_num(1.0, posinf=1.0) - 1), out) * out
            return at.moved(guided, change, self.space)

        return mix


def _std(out: Tensor) -> Tensor:
    return out.flatten(1).std(1)
