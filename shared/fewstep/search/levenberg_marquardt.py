"""The Levenberg-Marquardt method (Marquardt 1963, SIAM J. Appl. Math. 11): minimise |r(v)|^2 over a few numbers v.

(A + mu diag(A)) step = -g,      A = J^T J,  g = J^T r,  J = dr/dv

mu shrinks after a step that lowers the sum of squares and grows after one that does not. Scaling by diag(A) makes the steps
independent of the units of v.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Normal(NamedTuple):
    """A = J^T J: (P, P), g = J^T r: (P,) and |r|^2, in float64."""

    a: Tensor
    g: Tensor
    square: float


class Problem(Protocol):
    """A sum of squares |r(v)|^2 of v: (P,)."""

    def normal(self, v: Tensor) -> Normal:
        """The normal equations at v."""
        ...

    def square(self, v: Tensor) -> float:
        """|r(v)|^2; inf where v is not allowed."""
        ...


@dataclass
class Minimiser:
    """The state of a minimisation: numbers v: (P,) in float64, damping mu, and |r(v)|^2 once it is known.

    gain: the share of |r|^2 that the last iteration took away, both values of one problem (whose `normal` may move what it measures by).
    """

    v: Tensor
    mu: float = 1e-3
    square: float = float("inf")
    gain: float = 0.0

    def iterate(self, problem: Problem, attempts: int = 10) -> bool:
        """One accepted step; False where no damping tried (each 4 times the last) lowers the sum of squares."""
        a, g, self.square = problem.normal(self.v)
        scale = a.diagonal().clamp(min=1e-14 * a.diagonal().max().item() + 1e-300)
        for _ in range(attempts):
            v = self.v - torch.linalg.solve(a + torch.diag(self.mu * scale), g)
            square = problem.square(v)
            if square < self.square:
                self.gain = 1 - square / self.square
                self.v, self.square, self.mu = v, square, max(self.mu / 8, 1e-13)
                return True
            self.mu *= 4
        return False
