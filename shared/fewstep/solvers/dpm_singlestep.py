"""DPM-Solver (arXiv:2206.00927) and DPM-Solver++ (arXiv:2211.01095), singlestep, orders 1 to 3: k NFE per step.

m = x0 ("data") or eps ("noise"), m_0 at t, m_1 and m_2 at the inner nodes lambda_t + r_i h; E_k(r_i) are the exact weights of
exponential.py over the step to node i, E_k those of the whole step, D_i = (m_i - m_0)/r_i:

    k = 1   z_s = c_x z_t + E_1 m_0                                                       (also the step to node 1)
    k = 2   ... + (E_1/2) D_1                  (midpoint)     or   + E_2 D_1              (taylor)
    k = 3   node 2: ... + r_2 E_2(r_2) D_1
            ... + E_2 D_2                      (midpoint)     or   + E_2 A + E_3 B        (taylor)
            A = (r_2 D_1 - r_1 D_2)/(r_2 - r_1),   B = 2 (D_2 - D_1)/(r_2 - r_1)

k = 3 is of third order for r_2 = 2/3, or inner nodes that tend to it: node 1 is reached by a first-order step, and only then does its
estimate have no weight of first order in h, by either rule.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.ancestral import renoise
from fewstep.solvers.base import Half, Row, Solver, Stage
from fewstep.solvers.dpm_multistep import Rule
from fewstep.solvers.exponential import Step


def singlestep(path: Path, times: Sequence[Tensor], uses: Half, rule: Rule) -> tuple[Stage, ...]:
    """The stages of one step over times (t, inner nodes ..., s), elementwise; as many evaluations as times less one."""
    t, *inner, s = times
    step = Step(path, t, s, uses)
    zero, e1 = torch.zeros_like(step.first), step.first
    if not inner:
        return (Stage(t, (step.c_x,), (e1,)),)
    first = Step(path, t, inner[0], uses)
    predict, r1 = Stage(t, (first.c_x,), (first.first,)), first.h / step.h
    if len(inner) == 1:
        d1 = (e1 / 2 if rule == "midpoint" else step.moment(2)) / r1
        return predict, Stage(inner[0], (zero, step.c_x), (d1, e1 - d1))
    second = Step(path, t, inner[1], uses)
    r2 = second.h / step.h
    d1 = second.moment(2) * r2 / r1
    again = Stage(inner[0], (zero, second.c_x), (d1, second.first - d1))
    e2, e3 = step.moment(2), step.moment(3)
    d1, d2 = (zero, e2) if rule == "midpoint" else ((e2 * r2 - 2 * e3) / (r2 - r1), (2 * e3 - e2 * r1) / (r2 - r1))
    return predict, again, Stage(inner[1], (zero, zero, step.c_x), (d2 / r2, d1 / r1, e1 - d1 / r1 - d2 / r2))


@dataclass(frozen=True)
class DPMSinglestep(Solver):
    """k evaluations in every step of the grid.

    Args:
        k: order, 1 to 3.
        uses: "x0" (DPM-Solver++) or "eps" (DPM-Solver).
        rule: "midpoint" ("dpmsolver" of the official code) or "taylor".
        nodes: inner nodes as fractions of the step in lambda, k - 1 of them; () for the paper's (1/2) and (1/3, 2/3).
    """

    k: int = 2
    uses: Half = "x0"
    rule: Rule = "midpoint"
    nodes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.k not in (1, 2, 3) or len(self.nodes) not in (0, self.k - 1):
            raise ValueError(
                f"{type(self).__name__} takes k = 1, 2 or 3 and no or k - 1 nodes, not k = {self.k} and {self.nodes}"
            )

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 2 if self.k == 3 and abs(self.fractions[1] - 2 / 3) > 1e-6 else self.k

    @property
    def fractions(self) -> tuple[float, ...]:
        """The inner nodes."""
        return self.nodes or tuple(j / self.k for j in range(1, self.k))

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        return singlestep(path, (t, *inner_times(path, t, s, self.fractions), s), self.uses, self.rule)


def inner_times(path: Path, t: Tensor, s: Tensor, fractions: Sequence[float] | Tensor) -> list[Tensor]:
    """The times at fractions of the step t -> s in lambda, elementwise."""
    lam, h = path.log_snr(t), path.log_snr(s) - path.log_snr(t)
    return [path.time_of_log_snr(lam + r * h) for r in fractions]


def noisy_rows(path: Path, times: Sequence[Tensor], s: Tensor, uses: Half, rule: Rule, s_noise: float) -> Iterator[Row]:
    """The rows of `singlestep` over 0-dim times (t, inner nodes ..., d), and where d differs from s noise back up to s."""
    *stages, final = singlestep(path, times, uses, rule)
    stages.append(final if times[-1] == s else renoise(path, final, times[-1], s, s_noise))
    for i, stage in enumerate(stages, 1):
        x, e = (tuple(v.item() for v in w) for w in (stage.x, stage.e))
        noise = 0.0 if stage.noise is None else stage.noise.item()
        yield Row(stage.t.item(), s.item(), x, e, noise, i == len(stages), uses)


@dataclass(frozen=True)
class DPM2S(DPMSinglestep):
    """DPM-Solver-2 (noise form)."""

    uses: Half = "eps"


@dataclass(frozen=True)
class DPM3S(DPMSinglestep):
    """DPM-Solver-3 (noise form)."""

    k: int = 3
    uses: Half = "eps"


@dataclass(frozen=True)
class DPMpp2S(DPMSinglestep):
    """DPM-Solver++(2S)."""


@dataclass(frozen=True)
class DPMpp3S(DPMSinglestep):
    """DPM-Solver++(3S)."""

    k: int = 3
