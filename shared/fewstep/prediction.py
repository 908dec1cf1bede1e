"""What a network predicts, as one linear row over (x0, eps, y):  out = p x0 + q eps + r y.

Together with x_t = a x0 + s eps + b y this is a 2x2 system, so one solve replaces all pairwise converters.

    class      p     q     r
    X0         1     0     0
    Eps        0     1     0
    V         -s     a     0      angle velocity (arXiv:2202.00512); on any path, n = a^2 + s^2 need not be 1
    U          a'    s'    b'     flow velocity dx_t/dt
    Score      0   -1/s    0
    Residual  -1     0     1      y - x0 (ResShift, RDDM)

Preconditioned networks are rows too (precondition.py).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.paths import Coeffs


class Row(NamedTuple):
    """out = p x0 + q eps + r y, each (B, 1, ..., 1)."""

    p: Tensor
    q: Tensor
    r: Tensor


class Affine(NamedTuple):
    """x0 = x0_x x_t + x0_out out + x0_y y  and  eps = eps_x x_t + eps_out out + eps_y y, each (B, 1, ..., 1)."""

    x0_x: Tensor
    x0_out: Tensor
    x0_y: Tensor
    eps_x: Tensor
    eps_out: Tensor
    eps_y: Tensor


@dataclass(frozen=True)
class Prediction(ABC):
    """Meaning of a network's output, and how the state and the time are presented to it."""

    @abstractmethod
    def row(self, c: Coeffs) -> Row:
        """(p, q, r) at the coefficients c."""

    def affine(self, c: Coeffs) -> Affine:
        """(x0, eps) from (x_t, out, y): Cramer's rule on [[a, s], [p, q]] (x0, eps) = (x_t - b y, out - r y)."""
        p, q, r = self.row(c)
        det = c.a * q - c.s * p
        x0_x, x0_out = q / det, -c.s / det
        eps_x, eps_out = -p / det, c.a / det
        return Affine(x0_x, x0_out, -x0_x * c.b - x0_out * r, eps_x, eps_out, -eps_x * c.b - eps_out * r)

    def target(self, x0: Tensor, eps: Tensor, c: Coeffs, y: Tensor | None = None) -> Tensor:
        """What the network should output: p x0 + q eps + r y, shape of x0."""
        p, q, r = self.row(c)
        out = p * x0 + q * eps
        return out if y is None else out + r * y

    def input_scale(self, c: Coeffs) -> tuple[Tensor, Tensor]:
        """(i, j): the network sees i x_t + j y. Plain predictions show x_t itself."""
        return torch.ones_like(c.a), torch.zeros_like(c.a)

    def label(self, t: Tensor, c: Coeffs) -> Tensor:
        """The time label the network sees, shape of t."""
        return t


class X0(Prediction):
    """The clean data."""

    def row(self, c: Coeffs) -> Row:
        return Row(torch.ones_like(c.a), torch.zeros_like(c.a), torch.zeros_like(c.a))

    def affine(self, c: Coeffs) -> Affine:
        """x0 is the output itself, also at s = 0."""
        zero = torch.zeros_like(c.a)
        return Affine(zero, zero + 1, zero, 1 / c.s, -c.a / c.s, -c.b / c.s)


class Eps(Prediction):
    """The noise."""

    def row(self, c: Coeffs) -> Row:
        return Row(torch.zeros_like(c.a), torch.ones_like(c.a), torch.zeros_like(c.a))


class V(Prediction):
    """v = a eps - s x0."""

    def row(self, c: Coeffs) -> Row:
        return Row(-c.s, c.a, torch.zeros_like(c.a))


class U(Prediction):
    """u = dx_t/dt = a' x0 + b' y + s' eps."""

    def row(self, c: Coeffs) -> Row:
        return Row(c.da, c.ds, c.db)


class Score(Prediction):
    """grad log p_t = -eps / s."""

    def row(self, c: Coeffs) -> Row:
        return Row(torch.zeros_like(c.a), -1 / c.s, torch.zeros_like(c.a))

    def affine(self, c: Coeffs) -> Affine:
        """Closed form, finite at s = 0: x0 = (x + s^2 score)/a, eps = -s score."""
        zero = torch.zeros_like(c.a)
        return Affine(1 / c.a, c.s**2 / c.a, -c.b / c.a, zero, -c.s, zero)


class Residual(Prediction):
    """y - x0."""

    def row(self, c: Coeffs) -> Row:
        return Row(-torch.ones_like(c.a), torch.zeros_like(c.a), torch.ones_like(c.a))

    def affine(self, c: Coeffs) -> Affine:
        """x0 = y - out, also at s = 0."""
        zero = torch.zeros_like(c.a)
        return Affine(zero, zero - 1, zero + 1, 1 / c.s, c.a / c.s, -(c.a + c.b) / c.s)
