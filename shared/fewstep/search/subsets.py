"""Choices of k out of n nodes as candidates of an evolution: how they are drawn, mutated and crossed (AutoDiffusion, arXiv:2309.10438)."""

from dataclasses import dataclass
from random import Random

Nodes = tuple[int, ...]


@dataclass(frozen=True)
class Subsets:
    """Rising k-tuples of 0 .. n-1.

    rate: chance that a mutation moves a node; reach: by how many places at most, None for anywhere.

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
        """Each node moved with probability `rate`, one of them for certain."""
        certain = random.randrange(self.k) if self.k else 0
        moved = {
            self._move(v, random) if i == certain or random.random() < self.rate else v for i, v in enumerate(nodes)
        }
        return self._complete(moved, random)

    def cross(self, a: Nodes, b: Nodes, random: Random) -> Nodes:
        """Every place from either parent."""
        return self._complete({random.choice(pair) for pair in zip(a, b, strict=True)}, random)

    def _move(self, v: int, random: Random) -> int:
        if self.reach is None:
            return random.randrange(self.n)
        return min(max(v + random.randint(-self.reach, self.reach), 0), self.n - 1)

    def _complete(self, nodes: set[int], random: Random) -> Nodes:
        """Filled up to k nodes where two fell together."""
        rest = [v for v in range(self.n) if v not in nodes]
        return tuple(sorted(nodes | set(random.sample(rest, self.k - len(nodes)))))
