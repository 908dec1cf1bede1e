"""A pool of heads for each noise level, few of which judge at a time (NitroFusion, arXiv:2412.02030).

    group     g = floor(groups (t' - t_min)/(t_max - t_min));  on each layer it has `size` heads of its own, of several kinds in turn
    iteration `drawn` heads of every group and layer judge and learn;  then each head of the pool is made anew with probability `renewal`

so that no head stays long enough to be learnt by heart: the lifetimes are geometric with mean 1/renewal. Half of the heads see what the backbone
makes of the sample without its conditions; where the backbone has none there is one kind alone.

The paper says that about a hundredth is made anew in every iteration; how its heads are divided among groups is not published in code.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoiser
from fewstep.discriminators.adversary import Adversary
from fewstep.discriminators.discriminator import Discriminator, by_group, example_features, features
from fewstep.discriminators.heads import GlobalHead, Head
from fewstep.generator import Generator
from fewstep.paths import Path


@dataclass(frozen=True)
class PooledAdversary(Adversary):
    """An adversary with a pool of heads.

    Args:
        more: kinds of heads beside `head`, in turn over the slots of a group: global ones beside the local.
        groups: of noise levels, equal parts of the path's times; size: heads of each on each layer; drawn: of these, in an iteration.
        renewal: probability that a head is made anew after an iteration; unconditional: share of the heads that see no conditions.
    Raises:
        ValueError: drawn > size, no groups, shares outside of [0, 1].
    """

    more: Sequence[Head] = (GlobalHead(),)
    groups: int = 4
    size: int = 16
    drawn: int = 4
    renewal: float = 0.01
    unconditional: float = 0.5

    def __post_init__(self) -> None:
        if self.groups < 1 or not 1 <= self.drawn <= self.size:
            raise ValueError(f"groups >= 1 and 1 <= drawn <= size, not {self.groups}, {self.drawn} and {self.size}")
        if not 0 <= self.renewal <= 1 or not 0 <= self.unconditional <= 1:
            raise ValueError(f"renewal and unconditional are shares, not {self.renewal} and {self.unconditional}")

    def build(self, generator: Generator, backbone: Denoiser | None = None) -> "HeadPool":
        """The pool for this generator's network, or another backbone's.

        Raises:
            ValueError: heads without conditions for a generator that cannot leave out its own.
        """
        found, cond = example_features(generator, self.layers, backbone)
        blind = round(self.size * self.unconditional) if cond else 0
        if blind:
            generator.unconditional(cond)
        kinds = (self.head, *self.more)
        heads = [
            kinds[slot % len(kinds)].build(f) for slot in range(self.size) for _ in range(self.groups) for f in found
        ]
        return HeadPool(self.layers, heads, self.groups, self.drawn, blind, generator.unconditional)


class HeadPool(Discriminator):
    """Heads by slot, group and layer.

    All groups draw the same slots, and logits are repeated to one number per head: each head weighs as much, however many positions it judges.

    Args:
        layers: of the backbone; heads: of slot 0 for every layer of every group, then of slot 1, and so on.
        groups: of noise levels; drawn: slots that judge at a time; blind: the first so many slots see no conditions.
        unconditional: conditions -> those of the unconditional branch.
    """

    age: Tensor

    def __init__(
        self,
        layers: Sequence[str],
        heads: Sequence[nn.Module],
        groups: int,
        drawn: int,
        blind: int,
        unconditional: Callable[[Cond], Cond],
    ) -> None:
        super().__init__(layers, heads)
        self.groups, self.drawn, self.blind, self.unconditional = groups, drawn, blind, unconditional
        self.size = len(heads) // (groups * len(self.layers))
        self.slots = list(range(drawn))
        self.register_buffer("age", torch.zeros(len(heads), dtype=torch.long))

    def draw(self, generator: torch.Generator) -> None:
        """Take other slots."""
        self.slots = sorted(torch.randperm(self.size, generator=generator)[: self.drawn].tolist())

    def renew(self, share: float, generator: torch.Generator) -> list[nn.Module]:
        """Every head ages by one iteration, or is one of those, with this probability, that are to be made anew and are returned."""
        self.age += 1
        chosen = (torch.rand(len(self.heads), generator=generator) < share).nonzero()[:, 0].tolist()
        self.age[chosen] = 0
        return [self.heads[i] for i in chosen]

    def group(self, t: Tensor, path: Path) -> Tensor:
        """(B,) the group of each time."""
        share = (t - path.t_min) / (path.t_max - path.t_min)
        return (share * self.groups).long().clamp(0, self.groups - 1)

    def forward(self, backbone: Denoiser, x: Tensor, t: Tensor, cond: Cond, y: Tensor | None = None) -> Tensor:
        """x: (B, ...) at times t: (B,) -> logits (B, n) of the drawn heads of each sample's group."""
        seen, group = {}, self.group(t, backbone.path)
        for slot in self.slots:
            blind = slot < self.blind
            if blind not in seen:
                seen[blind] = features(backbone, self.layers, x, t, self.unconditional(cond) if blind else cond, y)
        logits = [
            self._by_group(slot, layer, f, group)
            for slot in self.slots
            for layer, f in enumerate(seen[slot < self.blind])
        ]
        n = math.lcm(*(v.shape[1] for v in logits))
        return torch.cat([v.repeat(1, n // v.shape[1]) for v in logits], 1)

    def _by_group(self, slot: int, layer: int, feature: Tensor, group: Tensor) -> Tensor:
        """(B, n) the logits of this slot's heads on this layer, each sample by its group's."""
        first, layers = slot * self.groups * len(self.layers) + layer, len(self.layers)
        return by_group(group, lambda g, rows: self.heads[first + g * layers](feature[rows]))
