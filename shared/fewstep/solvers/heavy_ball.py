"""Momentum for diffusion ODEs (arXiv:2307.11118): damps the artefacts of large steps under guidance. 1 NFE per step.

The paper's real-valued order R: k = ceil(R) Adams-Bashforth points and momentum beta = R - floor(R), or 1 (none) where
R is an integer. With p_i the Adams-Bashforth combination of the last k estimates eps, and u_i the slope of step i,
z_(i+1) = z_i + (rho_(i+1) - rho_i) u_i:

    HeavyBall   v_i = (1 - beta) v_(i-1) + beta p_i,      u_i = v_i
    Nesterov    v_i as above,                             u_i = (1 - beta) v_i + beta p_i
    GHVB        v_i = (1 - beta) v_(i-1) + beta eps_i,    u_i = sum_j w_j v_(i-j),  w corrected for the lag of v

v starts at the first eps and remembers every estimate, but applying 1 - (1 - beta) shift to u leaves a finite rule:

    u_i = (1 - beta) u_(i-1) + beta q_i,     q = p,     (2 - beta) p_i - (1 - beta) p_(i-1),     sum_j w_j eps_(i-j)

while the weights of u_(i-1) are those of u_i; in the first steps u is written out in the estimates. R integer is
IPNDM(R), bit by bit.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

from fewstep.solvers.ipndm import FixedWeights, adams_bashforth


@dataclass(frozen=True)
class Momentum(FixedWeights):
    """nominal: the order R > 0 of the paper; `order` is the measured one: the lag of v, if uncorrected, leaves 1."""

    nominal: float = 1.5

    def __post_init__(self) -> None:
        if not self.nominal > 0:
            raise ValueError(f"{type(self).__name__} needs a nominal order above 0, got {self.nominal}")

    @property
    def points(self) -> int:
        """k."""
        return math.ceil(self.nominal)

    @property
    def beta(self) -> float:
        """The weight of the new estimate in v."""
        return self.nominal % 1 or 1.0

    @property
    def order(self) -> int:
        return min(self.points, 2) if self.beta == 1 else 1

    @property
    def past(self) -> int:
        return max(self.points - 1, 2)

    @abstractmethod
    def fresh(self, i: int) -> list[float]:
        """beta q_i as weights of the estimates."""

    def slope(self, i: int) -> tuple[float, list[float]]:
        """u_1 is written out with u_0 = eps_0, which holds also after a first step out of a = 0 (rho infinite)."""
        if i == 0:
            return 0.0, [1.0]
        return (0.0, added(self.fresh(1), [0.0, 1.0 - self.beta])) if i == 1 else (1.0 - self.beta, self.fresh(i))


@dataclass(frozen=True)
class HeavyBall(Momentum):
    """Polyak's momentum on top of Adams-Bashforth. First order."""

    def fresh(self, i: int) -> list[float]:
        return [self.beta * w for w in adams_bashforth(min(i + 1, self.points))]


@dataclass(frozen=True)
class Nesterov(Momentum):
    """Nesterov's momentum on top of Adams-Bashforth. First order."""

    @property
    def past(self) -> int:
        return max(self.points, 2)

    def fresh(self, i: int) -> list[float]:
        new, old = (adams_bashforth(min(n, self.points)) for n in (i + 1, i))
        return added(
            [self.beta * (2 - self.beta) * w for w in new], [0.0, *(self.beta * (self.beta - 1) * w for w in old)]
        )


@dataclass(frozen=True)
class GHVB(Momentum):
    """Generalised heavy ball: Adams-Bashforth on the velocity. Order k on even steps in rho, at most 2 elsewhere."""

    @property
    def order(self) -> int:
        return min(self.points, 2)

    @property
    def past(self) -> int:
        return max(self.points, 2)

    def fresh(self, i: int) -> list[float]:
        return [self.beta * w for w in adams_bashforth(min(i + 1, self.points), self.beta)]

    def slope(self, i: int) -> tuple[float, list[float]]:
        """Until the k weights are in use, v_(i-j) written out in the estimates."""
        if i >= self.past:
            return 1.0 - self.beta, self.fresh(i)
        total = [0.0] * (i + 1)
        for j, w in enumerate(adams_bashforth(min(i + 1, self.points), self.beta)):
            total = added(total, [0.0] * j + [w * d for d in decaying(i - j, self.beta)])
        return 0.0, total


def decaying(i: int, beta: float) -> list[float]:
    """v_i in the estimates: beta (1 - beta)^j, and (1 - beta)^i of the first."""
    return [beta * (1 - beta) ** j for j in range(i)] + [(1 - beta) ** i]


def added(a: list[float], b: list[float]) -> list[float]:
    """a + b, the shorter one continued with zeros."""
    n = max(len(a), len(b))
    return [x + y for x, y in zip(a + [0.0] * (n - len(a)), b + [0.0] * (n - len(b)), strict=True)]
