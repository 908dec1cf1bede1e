"""Evolutionary search over any candidates (AutoDiffusion, arXiv:2309.10438, algorithm 1): keep the best, mutate and cross them."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch

C = TypeVar("C", bound=Hashable)


class Species(Protocol[C]):
    """How candidates are made."""

    def fresh(self, random: Random) -> C: ...

    def mutate(self, candidate: C, random: Random, /) -> C: ...

    def cross(self, a: C, b: C, random: Random, /) -> C: ...


class Scored(NamedTuple, Generic[C]):
    """A candidate and its objective; less is better."""

    score: float
    candidate: C


# (children proposed, all scored so far) -> the children worth the objective.
Screen = Callable[[Sequence[C], Sequence[Scored[C]]], Sequence[C]]


@dataclass(frozen=True)
class Evolution:
    """Sizes as published: each generation has `mutants` and `crosses` of the `keep` best so far, and fresh ones up to `population`."""

    population: int = 50
    keep: int = 10
    mutants: int = 35
    crosses: int = 25
    generations: int = 20


def evolve(
    objective: Callable[[C], float],
    species: Species[C],
    random: Random,
    sizes: Evolution = Evolution(),
    initial: Sequence[C] = (),
    screen: Screen[C] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[Scored[C]]:
    """All candidates visited, best first; none is scored twice.

    Args:
        objective: candidate -> score, less is better; scores that are not finite lose against all others.
        initial: candidates of the first generation, filled up with fresh ones.
        screen: keeps the children worth scoring, by what is known so far (a cheap predictor); all of them where not given.
    """
    scores: dict[C, float] = {}
    ranked: list[Scored[C]] = []
    children = list(initial) + [species.fresh(random) for _ in range(sizes.population - len(initial))]
    for generation in range(sizes.generations):
        new = [c for c in dict.fromkeys(children) if c not in scores]
        for candidate in new if screen is None or not ranked else screen(new, ranked):
            score = objective(candidate)
            scores[candidate] = score if math.isfinite(score) else float("inf")
        ranked = sorted((Scored(s, c) for c, s in scores.items()), key=lambda v: v.score)
        if progress is not None:
            progress(generation + 1, sizes.generations, ranked[0].score)
        parents = [v.candidate for v in ranked[: sizes.keep]]
        children = [species.mutate(random.choice(parents), random) for _ in range(sizes.mutants)]
        children += [
            species.cross(random.choice(parents), random.choice(parents), random) for _ in range(sizes.crosses)
        ]
        children += [species.fresh(random) for _ in range(sizes.population - len(children))]
    return ranked


def seeded(generator: torch.Generator | None) -> Random:
    """Python's random numbers, which choose and shuffle, seeded by a torch generator."""
    return Random(int(torch.randint(2**62, (), generator=generator).item()))
