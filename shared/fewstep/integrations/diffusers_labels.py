"""What a diffusers network is told about time, and the one prediction that fewstep has no row for."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fewstep.paths import Coeffs
from fewstep.precondition import EDMPrecondition
from fewstep.prediction import Affine, Prediction, Row


@dataclass(frozen=True)
class Labelled(Prediction):
    """`inner` with the label clamp(round(scale t), low, high) in place of t.

    rounding: `nearest` where diffusers rounds the index of a converted sigma, `down` where it cuts it to an integer.
    """

    inner: Prediction
    scale: float = 1.0
    rounding: Literal["none", "nearest", "down"] = "none"
    low: float | None = None
    high: float | None = None

    def row(self, c: Coeffs) -> Row:
        return self.inner.row(c)

    def affine(self, c: Coeffs) -> Affine:
        return self.inner.affine(c)

    def input_scale(self, c: Coeffs) -> tuple[Tensor, Tensor]:
        return self.inner.input_scale(c)

    def label(self, t: Tensor, c: Coeffs) -> Tensor:
        value = self.scale * self.inner.label(t, c)
        if self.low is not None or self.high is not None:
            value = value.clamp(self.low, self.high)
        if self.rounding == "nearest":
            return value.round()
        # An index computed a hair below an integer is that integer.
        return (value + 1e-6).floor() if self.rounding == "down" else value

    def time(self, label: Tensor) -> Tensor:
        """The time of a label, up to rounding."""
        return label / self.scale


@dataclass(frozen=True)
class NegatedEDM(EDMPrecondition):
    """EDMPrecondition of -F: diffusers' "v_prediction" with EDM scales; sigma_data = 1 is v of a VP process shown
    x/sqrt(1 + sigma^2).
    """

    def row(self, c: Coeffs) -> Row:
        p, q, r = super().row(c)
        return Row(-p, -q, r)

    def affine(self, c: Coeffs) -> Affine:
        k = super().affine(c)
        return k._replace(x0_out=-k.x0_out, eps_out=-k.eps_out)
