"""The flow velocity of noise that is `scale` times as large as its shape says (PeriodWave, arXiv:2408.07547).

    wave w, std of the prior from the mel, noise n = scale std eps
    state    x' = w / (scale std), so that its noise is white
    network  sees scale x' = w_t / std and outputs scale u' = u / std

so that the regression of the network's output is the paper's | (u_hat - u) / std |^2: divided by std alone, not by scale std.
"""

from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Coeffs
from fewstep.prediction import Prediction, Row


@dataclass(frozen=True)
class ScaledU(Prediction):
    """out = scale (a' x0 + b' y + s' eps), input scale x_t; scale 1 is `U`."""

    scale: float = 0.25

    def row(self, c: Coeffs) -> Row:
        return Row(self.scale * c.da, self.scale * c.ds, self.scale * c.db)

    def input_scale(self, c: Coeffs) -> tuple[Tensor, Tensor]:
        return self.scale * c.a.new_ones(c.a.shape), c.a.new_zeros(c.a.shape)
