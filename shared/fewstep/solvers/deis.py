"""DEIS (arXiv:2204.13902): the exact integral of dz/drho = eps, z = x/a, rho = s/a. 1 NFE per step.

eps is a polynomial of degree k through the current and the k previous nodes:

    z_s = (a_s/a_t) z_t + a_s sum_j C_j eps_j,     C_j = INT ell_j(x) drho,     x = (v - v_t)/(v_s - v_t) in [0, 1]

Three members differ in the variable v of the polynomials ell_j = sum_m c_jm x^m, so in the moments M_m = INT x^m drho
of C_j = sum_m c_jm M_m:

    deis_t       v = t        tAB of the paper; M_m by quadrature
    deis_rho     v = rho      rhoAB of the paper, LMS of k-diffusion; M_m = (rho_s - rho_t)/(m + 1)
    deis_lambda  v = lambda   DEISMultistepScheduler of diffusers; a_s M_m = m! E_(m+1), the exact exponential weights

M_0 = rho_s - rho_t in closed form, so every member is exact for constant eps and DDIM at degree 0. The official tAB
sums 10000 rectangles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Solver, Stage
from fewstep.solvers.exponential import Step


@dataclass(frozen=True)
class DEIS(Solver):
    """Order degree + 1 once as many steps are taken; the first steps use degree 0, 1, ...

    degree: of the polynomial. variable: what it is a polynomial of. tail: with fewer than `tail` steps in all, the last
    ones use degree (steps left) - 1 (diffusers' `lower_order_final` is tail = 15).
    A node where v is infinite (a = 0 or, for lambda, s = 0) is left out; out of a = 0 the step is DDIM's.
    """

    uses = "eps"

    degree: int = 3
    variable: Literal["t", "rho", "lambda"] = "t"
    tail: int = 0

    def __post_init__(self) -> None:
        if self.degree < 0 or self.variable not in ("t", "rho", "lambda"):
            raise ValueError(
                f"DEIS: degree >= 0 and variable t, rho or lambda, got {self.degree} and {self.variable!r}"
            )

    @property
    def order(self) -> int:
        return self.degree + 1

    @property
    def past(self) -> int:
        return self.degree

    def lookback(self, n: int) -> list[int]:
        return [min(self.degree, n - 1 - i) if n < self.tail else self.degree for i in range(n)]

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        nodes = [self._variable(path, v) for v in (t, s, *past)]
        span = nodes[1] - nodes[0]
        basis = lagrange([(v - nodes[0]) / span for v in nodes[2:]])
        moments = self._moments(path, t, s)
        step = Step(path, t, s, "eps")
        # A step that is infinite in v keeps the current eps.
        rest = [torch.where(span.isfinite(), weigh(c, moments), 0.0) for c in basis[1:]]
        return (Stage(t, (step.c_x,), (step.first - sum(rest, torch.zeros_like(t)), *rest)),)

    def _variable(self, path: Path, t: Tensor) -> Tensor:
        return t if self.variable == "t" else path.log_snr(t) if self.variable == "lambda" else (-path.log_snr(t)).exp()

    def _moments(self, path: Path, t: Tensor, s: Tensor) -> list[Tensor]:
        """a_s M_m, m = 0 .. degree."""
        step = Step(path, t, s, "eps")
        if self.variable == "lambda":
            return [math.factorial(m) * step.moment(m + 1) for m in range(self.degree + 1)]
        if self.variable == "rho":
            return [step.first / (m + 1) for m in range(self.degree + 1)]
        return [step.first, *(step.first - path.schedule(s)[0] * v for v in rises(path, t, s, self.degree))]


def lagrange(nodes: Sequence[Tensor]) -> list[list[Tensor]]:
    """c_jm of the Lagrange polynomials through x = 0 and `nodes`, elementwise; those of a non-finite node are 0."""
    there = [torch.ones_like(v, dtype=torch.bool) for v in nodes[:1]] + [v.isfinite() for v in nodes]
    r = [torch.zeros_like(v) for v in nodes[:1]] + [torch.where(v.isfinite(), v, 0.0) for v in nodes]
    basis = []
    for j in range(len(r)):
        poly = [torch.where(there[j], 1.0, 0.0).to(r[j])]
        for i in (i for i in range(len(r)) if i != j):
            both = there[i] & there[j]
            scale = torch.where(both, 1 / torch.where(both, r[j] - r[i], 1.0), 0.0)
            shift = torch.where(both, -r[i] * scale, 1.0)
            # (shift + scale x) times poly
            poly = [shift * lo + scale * hi for lo, hi in zip([*poly, 0 * r[j]], [0 * r[j], *poly], strict=True)]
        basis.append(poly)
    return basis


def weigh(coefficients: Sequence[Tensor], moments: Sequence[Tensor]) -> Tensor:
    """sum_m c_m M_m."""
    return sum((c * m for c, m in zip(coefficients, moments, strict=True)), torch.zeros_like(moments[0]))


def rises(path: Path, t: Tensor, s: Tensor, degree: int, nodes: int = 67) -> list[Tensor]:
    """m INT_0^1 x^(m-1) (rho(t + x (s - t)) - rho_t) dx for m = 1 .. degree.

    By partial integration M_m falls short of M_0 by that much. Tanh-sinh quadrature: its nodes crowd at both ends,
    where rho rises like a square root (clean) or has a pole nearby (noisy); Gauss-Legendre needs one substitution for
    each. Rounding on smooth paths (1e-14; 3e-12 from t = 0.99999 of a rectified flow), 1e-5 over the kinks of tabulated
    ones.
    """
    u = torch.linspace(-3.1, 3.1, nodes, dtype=torch.float64, device=t.device)
    x = torch.sigmoid(math.pi * u.sinh())
    w = math.pi * u.cosh() * x * torch.sigmoid(-math.pi * u.sinh()) * (u[1] - u[0])
    a, _, noise = path.schedule(t[..., None] + x * (s - t)[..., None])
    (at, _, st) = path.schedule(t)
    rise = noise / a - (st / at)[..., None]
    return [m * (w * x ** (m - 1) * rise).sum(-1) for m in range(1, degree + 1)]
