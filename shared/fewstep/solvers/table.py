"""A stored table: the rows of one trajectory, as a search found them, run like any other solver.

    sample(denoise, x, path, table, table.grid)
    Generator(denoiser, solver=table, grid=Explicit(table.times), steps=table.steps)

A table belongs to one path and one grid, which it remembers; on any other it refuses to run.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.artifacts import build, describe
from fewstep.paths import Path
from fewstep.solvers.base import Half, Row, Solver, Stage

FORMAT = 1


@dataclass(frozen=True)
class TableRow:
    """A `Row` of plain numbers: x_new = sum_j x[j] X_j + sum_k e[k] E_k + noise xi + y anchor, evaluated at t, inside a step to s."""

    t: float
    s: float
    x: tuple[float, ...]
    e: tuple[float, ...]
    uses: Half = "x0"
    noise: float = 0.0
    y: float = 0.0
    last: bool = True


@dataclass(frozen=True)
class Table(Solver):
    """The rows of one trajectory on one path.

    order is 0: there is no limit of small steps to be of an order in.

    Raises:
        ValueError: no rows, weights that are not finite, or a row that looks at estimates not made yet.
    """

    order: ClassVar[int] = 0

    path: Path
    lines: tuple[TableRow, ...]

    def __post_init__(self) -> None:
        if not self.lines or not self.lines[-1].last:
            raise ValueError("a table needs at least one row, and its last row must end a step")
        evaluated = 0
        for n, line in enumerate(self.lines):
            evaluated += bool(line.e)
            if len(line.e) > evaluated or not 1 <= len(line.x) <= n + 1:
                raise ValueError(f"row {n} of a table has {len(line.x)} states and {len(line.e)} estimates to look at")
            if not all(map(math.isfinite, (line.t, line.s, *line.x, *line.e, line.noise, line.y))):
                raise ValueError(f"row {n} of a table has a number that is not finite")

    @classmethod
    def of(cls, solver: Solver, path: Path, grid: Tensor) -> "Table":
        """The table that another solver is on this grid.

        Raises:
            ValueError: weights per coordinate, or a constant term: a table holds plain numbers.
        """
        lines = []
        for r in solver.plan(path, grid):
            if r.bias != 0.0 or any(isinstance(w, Tensor) for w in (*r.x, *r.e, r.noise, r.y)):
                raise ValueError(f"{type(solver).__name__} has weights per coordinate; a table holds plain numbers")
            lines.append(line(r))
        return cls(path, tuple(lines))

    @property
    def times(self) -> tuple[float, ...]:
        """The grid as plain numbers, as `grids.Explicit` takes it."""
        return (self.lines[0].t, *(r.s for r in self.lines if r.last))

    @property
    def grid(self) -> Tensor:
        """(n + 1,) float64 decreasing times."""
        return torch.tensor(self.times, dtype=torch.float64)

    @property
    def steps(self) -> int:
        """n."""
        return len(self.times) - 1

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser."""
        return sum(bool(r.e) for r in self.lines)

    def stages(self, path: Path, t: Tensor, s: Tensor, past: object) -> tuple[Stage, ...]:
        """None: a table has no step outside its grid."""
        raise ValueError("a stored table has no single step at other times than its own")

    def rows(self, path: Path, grid: Tensor) -> Iterable[Row]:
        """The stored rows.

        Raises:
            ValueError: another path, or another grid.
        """
        if path != self.path:
            raise ValueError(f"this table was made for {self.path}, not for {path}")
        if tuple(grid.tolist()) != self.times:
            raise ValueError(f"this table has {self.steps} steps at times of its own: sample it on table.grid")
        for r in self.lines:
            yield Row(r.t, r.s, tuple(r.x), tuple(r.e), r.noise, r.last, r.uses, r.y)

    def save(self, file: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None) -> FilePath:
        """Write the table as JSON, whole or not at all; numbers come back bit for bit."""
        file = FilePath(file)
        text = json.dumps({"format": FORMAT, "table": describe(self), "provenance": dict(provenance or {})}, indent=2)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            part.write_text(text + "\n")
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        return file

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "Table":
        """The table of a JSON file written by `save`.

        Raises:
            ValueError: no such file, not JSON, not a table, or a table that cannot be run.
        """
        file = FilePath(file)
        try:
            stored = json.loads(file.read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as err:
            raise ValueError(f"{file} cannot be read as a table: {err}") from err
        if not isinstance(stored, dict) or stored.get("format") != FORMAT or "table" not in stored:
            raise ValueError(f"{file} is not a table of format {FORMAT}, as `fewstep search-schedule` writes them")
        table = build(stored["table"], where=str(file))
        if not isinstance(table, Table):
            raise ValueError(  # noqa: TRY004 (a bad file, as all of load reports it)
                f"{file} holds a {type(table).__name__}, not a table"
            )
        return table


def line(r: Row) -> TableRow:
    """A row of plain numbers as it is stored."""
    x, e = (tuple(float(w) for w in v) for v in (r.x, r.e))
    return TableRow(r.t, r.s, x, e, r.uses, float(r.noise), float(r.y), r.last)
