"""Choices of k out of n nodes as candidates of an evolution: how they are drawn, mutated and crossed (AutoDiffusion, arXiv:2309.10438)."""

from collections.abc import Collection
from dataclasses import dataclass
from random import Random

Nodes = tuple[int, ...]


@dataclass(frozen=True)
class Subsets:
    """Rising k-tuples of 0 .. n-1.

    rate: chance that a mutation moves a node, to a free one; reach: by how many places at most, None for anywhere.

    Raises:
        ValueError: unless 0 <= k <= n.
    """

    n: int
    k: int
    rate: float = 0.1
    reach: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.k <= self.n:
            raise ValueError(f"{self.k} of {self.n} nodes cannot be chosen")

    def fresh(self, random: Random) -> Nodes:
        """Any subset, all equally likely."""
        return tuple(sorted(random.sample(range(self.n), self.k)))

    def mutate(self, nodes: Nodes, random: Random) -> Nodes:
        """Each node that has a free one in reach moved with probability `rate`, one of them for certain."""
        able = [v for v in nodes if self._free(v, nodes)]
        certain = random.choice(able) if able else None
        moved = set(nodes)
        for v in nodes:
            if v == certain or random.random() < self.rate:
                free = self._free(v, moved)
                if free:
                    moved = (moved - {v}) | {random.choice(free)}
        return tuple(sorted(moved))

    def cross(self, a: Nodes, b: Nodes, random: Random) -> Nodes:
        """Every place from either parent, filled up by any nodes where two fall together."""
        nodes = {random.choice(pair) for pair in zip(a, b, strict=True)}
        rest = [v for v in range(self.n) if v not in nodes]
        return tuple(sorted(nodes | set(random.sample(rest, self.k - len(nodes)))))

    def _free(self, v: int, nodes: Collection[int]) -> list[int]:
        """The nodes in reach of v that are not chosen."""
        reach = self.n if self.reach is None else self.reach
        return [u for u in range(max(v - reach, 0), min(v + reach + 1, self.n)) if u not in nodes]
