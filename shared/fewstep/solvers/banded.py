"""Any solver on a path per band (paths/banded.py): one plan per band, stacked. NFE as the solver's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.paths.banded import BandedPath
from fewstep.solvers.base import Row, Solver, Stage, Weight


@dataclass(frozen=True)
class Banded(Solver):
    """The solver on every band. Its evaluations must lie at times of the grid: inner nodes in lambda differ."""

    solver: Solver

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.order

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        raise ValueError("steps at per-sample times have no weights per band: sample() runs banded plans")

    def rows(self, path: Path, grid: Tensor) -> Iterable[Row]:
        if not isinstance(path, BandedPath):
            raise TypeError(f"Banded runs on a path of bands, not on {type(path).__name__}")
        for rows in zip(*(self.solver.plan(band, grid) for band in path.bands), strict=True):
            if any((r.t, r.s, r.last, r.uses) != (rows[0].t, rows[0].s, rows[0].last, rows[0].uses) for r in rows):
                raise ValueError(f"{type(self.solver).__name__} evaluates bands at different times")
            yield rows[0]._replace(
                x=_stack([r.x for r in rows], path.index),
                e=_stack([r.e for r in rows], path.index),
                noise=_spread([r.noise for r in rows], path.index),
            )


def _stack(weights: Sequence[tuple[Weight, ...]], index: Tensor) -> tuple[Weight, ...]:
    """Position by position; shorter tuples end in zeros."""
    longest = max(map(len, weights))
    padded = [(*w, *[0.0] * (longest - len(w))) for w in weights]
    return tuple(_spread(column, index) for column in zip(*padded, strict=True))


def _spread(column: Sequence[Weight], index: Tensor) -> Weight:
    """One weight per band as one per coordinate; a plain 0 where all are."""
    values = torch.tensor(column, dtype=torch.float64)
    return values[index] if values.any() else 0.0
