"""Family edm: NVlabs/edm, edm_sampler and ablation_sampler, whose networks cover every noise level."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from golden_cases import sampled

from fewstep.paths.base import Path
from fewstep.paths.edm import EDM
from fewstep.solvers.churn import Churn
from fewstep.solvers.heun import Heun
from fewstep.solvers.runge_kutta import EULER, RungeKutta, second_order
from golden_families.starts import start

EPSILON = 1e-3


@dataclass(frozen=True)
class Ablation(Path):
    """c (x0 + sigma eps): sigma = sqrt(e^(Bd t^2/2 + Bm t) - 1), sqrt(t) or t; c = 1/sqrt(1 + sigma^2) or 1."""

    kind: Literal["vp", "ve", "linear"]
    scaling: Literal["vp", "none"]
    span: float = 0.0
    beta_min: float = 0.0

    @property
    def t_max(self):
        return math.inf

    def schedule(self, t):
        sigma = {"vp": torch.expm1(self.span * t**2 / 2 + self.beta_min * t).sqrt(), "ve": t.sqrt(), "linear": t}[
            self.kind
        ]
        a = (1 + sigma**2).rsqrt() if self.scaling == "vp" else torch.ones_like(t)
        return a, torch.zeros_like(t), a * sigma

    def time_of_log_snr(self, lam):
        sigma = (-lam).exp()
        if self.kind == "vp":
            return ((self.beta_min**2 + 2 * self.span * (sigma**2 + 1).log()).sqrt() - self.beta_min) / self.span
        return sigma**2 if self.kind == "ve" else sigma


def rho_steps(smax, smin, n, power):
    i = torch.arange(n, dtype=torch.float64) / (n - 1)
    return (smax ** (1 / power) + i * (smin ** (1 / power) - smax ** (1 / power))) ** power


def iddpm_steps(smax, smin, n, given):
    """n of the levels u_M = 0, u_(j-1) = sqrt((u_j^2 + 1)/max(abar_(j-1)/abar_j, C_1) - 1) that lie in [smin, smax]."""
    levels, c1, c2 = given.get("M", 1000), given.get("C_1", 0.001), given.get("C_2", 0.008)

    def bar(j):  # of an integer tensor, so in the default dtype (float32) as in the official code
        return (0.5 * math.pi * torch.tensor(j) / levels / (c2 + 1)).sin() ** 2

    u = [torch.zeros((), dtype=torch.float64)]
    for j in range(levels, 0, -1):
        u.insert(0, ((u[0] ** 2 + 1) / (bar(j - 1) / bar(j)).clip(min=c1) - 1).sqrt())
    u = torch.stack(u)
    u = u[(u >= smin) & (u <= smax)]
    return u[((len(u) - 1) / (n - 1) * torch.arange(n, dtype=torch.float64)).round().long()]


def ablation(given, n):
    """(path, noise levels) of ablation_sampler."""

    def vp_sigma(t):
        return math.sqrt(math.expm1(19.9 * t**2 / 2 + 0.1 * t))

    kind = given.get("discretization", "edm")
    smin = given.get("sigma_min") or {"vp": vp_sigma(given.get("epsilon_s", EPSILON)), "ve": 0.02}.get(kind, 0.002)
    smax = given.get("sigma_max") or {"vp": vp_sigma(1.0), "ve": 100.0, "iddpm": 81.0}.get(kind, 80.0)
    eps = given.get("epsilon_s", EPSILON)
    lo, hi = math.log(smin**2 + 1), math.log(smax**2 + 1)
    span = 2 * (lo / eps - hi) / (eps - 1)
    path = Ablation(given.get("schedule", "linear"), given.get("scaling", "none"), span, hi - span / 2)
    if kind == "vp":
        t = 1 + torch.arange(n, dtype=torch.float64) / (n - 1) * (eps - 1)
        _, _, sigma = Ablation("vp", "none", span, hi - span / 2).schedule(t)
    elif kind == "ve":
        sigma = smax * (smin / smax) ** (torch.arange(n, dtype=torch.float64) / (n - 1))
    elif kind == "iddpm":
        sigma = iddpm_steps(smax, smin, n, given)
    else:
        sigma = rho_steps(smax, smin, n, given.get("rho", 7))
    return path, sigma


def edm(case):
    given = case["sample_kwargs"]
    n = given.get("num_steps", 18)
    if case["function"] == "ablation_sampler":
        path, sigma = ablation(given, n)
        tableau = EULER if given.get("solver", "heun") == "euler" else second_order(given.get("alpha", 1))
        solver = RungeKutta(tableau, "t")
    else:
        path, solver = EDM(math.inf), Heun()
        sigma = rho_steps(given.get("sigma_max", 80), given.get("sigma_min", 0.002), n, given.get("rho", 7))
    times = path.time_of_log_snr(-sigma.log())
    grid = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    if given.get("S_churn", 0):
        limits = given.get("S_min", 0), given.get("S_max", math.inf)
        solver = Churn(solver, given["S_churn"], *limits, given.get("S_noise", 1))
    steps = {t: i for i, t in enumerate(grid.tolist())}
    noise = (lambda row: case.array("noise")[steps[row.t]]) if "noise" in case else None
    scale = path.schedule(times[:1])[2]  # the start is c(t_0) sigma(t_0) n
    yield from sampled(case, case.mixture(case["mixture"], path), scale * start(case), path, solver, grid, noise=noise)


FAMILIES = {"edm": edm}
