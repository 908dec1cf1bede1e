"""Starts for searching over a saved generator: some to fit, some to select by, some to report on."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.generator import Generator
from fewstep.paths import Path
from fewstep.search.starts import Starts, reference


class Problem(NamedTuple):
    """Batches of starts on one path; no noise is in two of them and, with a conditioning batch, no item of it."""

    path: Path
    fit: list[Starts]
    select: list[Starts]
    report: list[Starts]


class Items(NamedTuple):
    """What starts are drawn for: the shape of one state, and conditions and anchors (N, ...), None without."""

    shape: tuple[int, ...]
    cond: Cond
    y: Tensor | None

    def __len__(self) -> int:
        tensors = [*self.cond.values(), *([] if self.y is None else [self.y])]
        return min((len(v) for v in tensors), default=0)

    def pick(self, index: Tensor) -> tuple[Cond, Tensor | None]:
        """Conditions and anchors of these items."""
        if len(self) == 0:
            return {}, None
        return {k: v[index] for k, v in self.cond.items()}, None if self.y is None else self.y[index]


def problem(
    model: Generator,
    items: Items,
    starts: int = 128,
    size: int = 32,
    seed: int = 0,
    steps: int = 100,
    report: int | None = None,
    target: Generator | None = None,
) -> Problem:
    """`starts` starts to fit, half as many to select by, and `report` (again `starts` unless given) to report on.

    Args:
        items: the first half of them serves the fit, the next quarter the selection, the rest the report.
        size: largest batch; steps: of the reference solver.
        target: the model whose end points are to be reached, of the same path and conditions; the model's own unless given.
    Raises:
        ValueError: fewer than 2 starts, 1 to 3 items, or a target on another path.
    """
    n = len(items)
    if starts < 2 or 0 < n < 4:
        raise ValueError(f"a search needs at least 2 starts and at least 4 items of a batch, got {starts} and {n}")
    target = target or model
    if target.denoiser.path != model.denoiser.path:
        raise ValueError(f"end points on {target.denoiser.path} cannot be reached on {model.denoiser.path}")
    parts = [range(n // 2), range(n // 2, n // 2 + n // 4), range(n // 2 + n // 4, n)]
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        _batches(model, target, items, part, count, size, generator, steps)
        for part, count in zip(parts, (starts, starts // 2, report or starts), strict=True)
    ]
    return Problem(model.denoiser.path, *drawn)


def items_of(model: Generator, batch: Mapping[str, Tensor]) -> Items:
    """The items of a data batch, as the model prepares it."""
    with torch.no_grad():
        prepared = model.prepare(batch)
    return Items(tuple(prepared.x0.shape[1:]), prepared.cond, prepared.y)


@torch.no_grad()
def _batches(
    model: Generator,
    target: Generator,
    items: Items,
    part: range,
    count: int,
    size: int,
    generator: torch.Generator,
    steps: int,
) -> list[Starts]:
    like = next(model.parameters())
    found = []
    for first in range(0, count, size):
        n = min(size, count - first)
        noise = torch.randn(n, *items.shape, generator=generator).to(like)
        index = torch.tensor([part[(first + k) % len(part)] for k in range(n)] if part else [])
        cond, y = items.pick(index)
        path = model.denoiser.path
        reached = reference(target.denoiser.bind(cond, y), path.start(noise, y), path, y, steps)
        found.append(reached._replace(denoise=model.denoiser.bind(cond, y)))
    return found
