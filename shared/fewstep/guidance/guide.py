"""One network, several conditions, one rule: denoiser in, denoiser out.

    Guide(denoiser, Rescale(CFGRule(7.5)), [uncond]).bind(cond, y)          a callable (x, t) -> Estimate

A negative prompt is an unconditional branch with other conditions: Guide(denoiser, rule, [negative]).
"""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise
from fewstep.estimate import Estimate
from fewstep.guidance.rule import Mixed, Rule, forward_prepare
from fewstep.paths import Path


class Model(Protocol):
    """What can be guided: a Denoiser, or anything that binds like one."""

    @property
    def path(self) -> Path: ...

    def bind(self, cond: Cond | None = None, y: Tensor | None = None) -> Denoise: ...


class Branch:
    """A model with its conditions, which can also be evaluated on part of its batch."""

    def __init__(self, model: Model, cond: Cond | None, y: Tensor | None) -> None:
        self.model, self.cond, self.y = model, cond or {}, y
        self.denoise = model.bind(cond, y)

    def prepare(self, times: tuple[float, ...], x: Tensor) -> None:
        """Pass the grid on."""
        forward_prepare(self.denoise, times, x)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        return self.denoise(x, t)

    def part(self, rows: Tensor) -> Denoise:
        """The same for some rows of the batch: (n,) indices."""
        return self.model.bind({k: v[rows] for k, v in self.cond.items()}, None if self.y is None else self.y[rows])


class Guide:
    """A model whose branches differ in their conditions.

    Args:
        denoiser: the model; another Guide serves as well.
        rule: how the branches are mixed.
        others: conditions of branches 1, 2, ...: (B, ...) or one row each, broadcast over the batch.
        together: evaluate the branches that a step needs in one call on their stacked batches. Pays where a call on 2B
            rows costs less than two on B: small batches on a GPU. Rules and their results do not change.
    """

    def __init__(self, denoiser: Model, rule: Rule, others: Sequence[Cond], together: bool = False) -> None:
        self.denoiser, self.rule, self.others, self.together = denoiser, rule, tuple(others), together

    @property
    def path(self) -> Path:
        """The model's path."""
        return self.denoiser.path

    def bind(self, cond: Cond | None = None, y: Tensor | None = None) -> Denoise:
        """The guided callable (x, t) -> Estimate."""
        conds = [cond or {}, *(broadcast(other, cond) for other in self.others)]

        @cache
        def stacked(which: tuple[int, ...]) -> Denoise:
            both = {k: torch.cat([conds[i][k] for i in which]) for k in conds[0]}
            return self.denoiser.bind(both, None if y is None else torch.cat([y] * len(which)))

        branches = [Branch(self.denoiser, c, y) for c in conds]
        return Mixed(branches, self.rule, self.path, stacked if self.together else None)


def broadcast(other: Cond, cond: Cond | None) -> Cond:
    """Conditions of one row repeated for the batch of `cond`."""
    n = next((len(v) for v in (cond or {}).values()), None)
    return {k: v if n is None else v.expand(n, *v.shape[1:]) for k, v in other.items()}
