"""Several networks behind one: each sample goes through the one of its label's group (MSD, arXiv:2410.23274)."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Routed(nn.Module):
    """net(x: (B, ...), t: (B,), label: (B,), **cond) by the network of each label.

    Args:
        nets: one for each group, alike in what they take and give.
        groups: the labels of each; the null label goes with the first group.
    Raises:
        ValueError: groups that do not hold every label exactly once.
    """

    route: Tensor

    def __init__(self, nets: Sequence[nn.Module], groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.nets, self.groups = nn.ModuleList(nets), tuple(tuple(group) for group in groups)
        self.classes = int(getattr(self.nets[0], "classes", 0))
        held = sorted(label for group in self.groups for label in group)
        if len(self.groups) != len(self.nets) or held != list(range(self.classes)):
            raise ValueError(
                f"{len(self.nets)} networks need as many groups, with each label of 0 .. {self.classes - 1} once; got {self.groups}"
            )
        route = torch.zeros(self.classes + 1, dtype=torch.long)
        for k, group in enumerate(self.groups):
            route[list(group)] = k
        self.register_buffer("route", route, persistent=False)

    @classmethod
    def copies(cls, net: nn.Module, groups: Sequence[Sequence[int]]) -> "Routed":
        """A copy of one network for each group: the same outputs until they are trained."""
        return cls([copy.deepcopy(net) for _ in groups], groups)

    @property
    def scalars(self) -> dict[str, float]:
        """Those of its networks."""
        return getattr(self.nets[0], "scalars", {})

    def forward(self, x: Tensor, t: Tensor, label: Tensor, **cond: Any) -> Tensor:
        """(B, ...); networks without a sample in the batch are not run."""
        out, to = torch.empty_like(x), self.route[label]
        for k, net in enumerate(self.nets):
            rows = (to == k).nonzero()[:, 0]
            if len(rows):
                part = net(x[rows], t[rows], label=label[rows], **{name: v[rows] for name, v in cond.items()})
                out = out.to(part.dtype).index_copy(0, rows, part)
        return out
