"""Solvers made of another solver: order, history and weights are those of the one inside, `rows` is changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Half, Solver, Stage


@dataclass(frozen=True)
class SolverWrapper(Solver):
    """Passes everything on to `solver`; subclasses write `rows`."""

    solver: Solver

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.order

    @property
    def past(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.past

    @property
    def uses(self) -> Half:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.uses

    def lookback(self, n: int) -> Sequence[int]:
        return self.solver.lookback(n)

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        return self.solver.stages(path, t, s, past)

    def regular(self, path: Path, t: Tensor, s: Tensor, stages: int) -> Tensor:
        return self.solver.regular(path, t, s, stages)
