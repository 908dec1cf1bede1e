"""Searches by evolution and on grids find what is known to be best: brute force in small spaces, a spoiled network's own coefficients."""

import itertools
import math
from random import Random

import pytest
import torch
from torch import nn
from worlds import name, normal

from fewstep.denoiser import Denoiser
from fewstep.grids import LogSNR, Uniform
from fewstep.paths import DDPM, VP, RectifiedFlow, ResidualShift
from fewstep.precondition import EDMPrecondition
from fewstep.prediction import X0, Eps, Residual, U, V
from fewstep.sampling import sample
from fewstep.search import reference
from fewstep.search.evolve import Evolution, evolve
from fewstep.search.q_sched import grid_search, scaled_outputs, scaled_states, search_q_sched
from fewstep.search.ranking import Ranker
from fewstep.search.starts import Starts, error, fine_grid
from fewstep.search.subsets import Subsets
from fewstep.search.times import candidate_times, even, search_times
from fewstep.search.usf import Genomes, presets, search_usf
from fewstep.solvers import DDIM, PLMS, DPMpp2M, UniPC
from fewstep.solvers.table import Table
from fewstep.toy import ring

SMALL = Evolution(population=20, keep=6, mutants=10, crosses=6, generations=8)


def starts(n, seed):
    world = ring(VP())
    return [reference(world, world.path.start(normal(n, 2, seed=seed)), world.path)]


# --- evolution ---------------------------------------------------------------------------------------------------


def test_evolution_finds_the_least_of_a_small_space_and_scores_nothing_twice():
    seen = []

    def objective(nodes):
        seen.append(nodes)
        return sum((v - w) ** 2 for v, w in zip(nodes, (1, 6, 7), strict=True))

    ranked = evolve(objective, Subsets(9, 3), Random(0), SMALL)
    assert ranked[0] == (0.0, (1, 6, 7))
    assert len(seen) == len(set(seen)) == len(ranked)
    assert [r.score for r in ranked] == sorted(r.score for r in ranked)
    assert evolve(objective, Subsets(9, 3), Random(0), SMALL) == ranked


def test_scores_that_are_not_finite_lose():
    ranked = evolve(lambda nodes: math.nan if 0 in nodes else float(sum(nodes)), Subsets(6, 2), Random(1), SMALL)
    assert ranked[0].candidate == (1, 2)
    assert all((0 in r.candidate) == (r.score == math.inf) for r in ranked)


def test_a_screen_decides_what_is_scored_after_the_first_generation():
    first = [(0, 1), (2, 3)]
    sizes = Evolution(population=2, keep=2, mutants=8, crosses=2, generations=4)
    ranked = evolve(lambda nodes: float(sum(nodes)), Subsets(8, 2), Random(0), sizes, first, lambda new, known: new[:1])
    assert len(ranked) <= 2 + 3
    assert {(0, 1), (2, 3)} <= {r.candidate for r in ranked}


@pytest.mark.parametrize("reach", [None, 2])
def test_subsets_stay_subsets_and_mutations_change_them(reach):
    species, random = Subsets(10, 4, rate=0.3, reach=reach), Random(0)
    a, b = species.fresh(random), species.fresh(random)
    for _ in range(200):
        for child in (species.mutate(a, random), species.cross(a, b, random)):
            assert len(child) == 4
            assert list(child) == sorted(set(child))
            assert set(child) <= set(range(10))
        assert set(species.cross(a, a, random)) == set(a)
    found = [species.mutate(a, random) for _ in range(4000)]
    assert a not in found
    single = {
        tuple(sorted({*a} - {v} | {u})) for v in a for u in range(10) if u not in a and abs(u - v) <= (reach or 10)
    }
    assert single <= set(found)  # every move of one node in reach occurs
    assert any(len(set(a) - set(m)) > 1 for m in found)
    if reach:
        assert all(min(abs(u - v) for v in a) <= reach for m in found for u in m)
    full = Subsets(3, 3, reach=reach)
    assert full.mutate((0, 1, 2), random) == (0, 1, 2)  # there is no other


# --- times -------------------------------------------------------------------------------------------------------


def test_searched_times_are_the_best_of_all_subsets():
    part, nodes = starts(64, 1), fine_grid(VP(), 10)
    table = search_times(VP(), part, 3, torch.Generator().manual_seed(0), DPMpp2M(), nodes, sizes=SMALL, rate=0.3)
    n = len(nodes) - 2

    def of(chosen):
        own = Table.of(DPMpp2M(), VP(), nodes[[0, *(v + 1 for v in chosen), -1]])
        return error(own, VP(), own.grid, part)

    least = min(of(chosen) for chosen in itertools.combinations(range(n), 2))
    assert error(table, VP(), table.grid, part) == pytest.approx(least, rel=1e-12)
    assert least < of(even(n, 2))


def test_paths_of_indices_are_searched_over_all_of_them():
    assert candidate_times(DDPM()).tolist() == [*range(999, -2, -1)]
    assert len(candidate_times(VP())) == 129


# --- schedules: USF ----------------------------------------------------------------------------------------------


def test_the_first_generation_of_schedules_holds_known_solvers():
    grid = fine_grid(VP(), 64)
    own = grid[[0, *(v + 1 for v in even(63, 4)), -1]]
    x = normal(8, 2)
    known = [DDIM(), DPMpp2M(), UniPC(2), UniPC(3)]
    made = presets(grid, 5)
    for genome, solver in zip((made[0], made[1], *made[-2:]), known, strict=True):
        ours = sample(ring(VP()), x, VP(), genome.schedule(grid), own)
        torch.testing.assert_close(ours, sample(ring(VP()), x, VP(), solver, own), rtol=1e-10, atol=1e-10)


def test_a_searched_schedule_beats_all_it_began_from_also_on_starts_it_never_saw():
    part, unseen, grid = starts(64, 1), starts(256, 2), fine_grid(VP(), 64)
    sizes = Evolution(population=20, keep=8, mutants=20, crosses=12, generations=8)
    table = search_usf(VP(), part, 5, torch.Generator().manual_seed(0), sizes=sizes, scored=10)
    assert table.nfe == 5
    began = [Table.of(g.schedule(grid), VP(), g.schedule(grid).grid) for g in presets(grid, 5)]
    for other in (part, unseen):
        assert error(table, VP(), table.grid, other) < 0.9 * min(error(t, VP(), t.grid, other) for t in began)
    again = search_usf(VP(), part, 5, torch.Generator().manual_seed(0), sizes=sizes, scored=10)
    assert again == table


def test_genomes_keep_their_form():
    species, random = Genomes(Subsets(62, 4, reach=6)), Random(0)
    a, b = species.fresh(random), species.fresh(random)
    length = len(a.features(64))
    for _ in range(100):
        for g in (species.mutate(a, random), species.cross(a, b, random), species.fresh(random)):
            assert (len(g.steps), len(g.nodes), len(g.features(64))) == (5, 4, length)
        crossed = species.cross(a, b, random)
        assert all(step in pair for step, pair in zip(crossed.steps, zip(a.steps, b.steps, strict=True), strict=True))


def test_the_ranker_learns_an_order():
    generator = torch.Generator().manual_seed(0)
    x, unseen = (torch.randn(n, 6, generator=generator) for n in (120, 200))
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 3.0])
    ranker = Ranker()
    ranker.fit(x, (x @ weights).exp().tolist(), generator)
    rank = torch.stack([ranker(unseen), unseen @ weights]).argsort(1).argsort(1).double()
    assert torch.corrcoef(rank)[0, 1] > 0.95
    with pytest.raises(ValueError, match="at least 2"):
        ranker.fit(x[:1], [1.0], generator)


# --- Q-Sched -----------------------------------------------------------------------------------------------------


class Spoiled(nn.Module):
    """The velocity of one Gaussian around `mean`, too large by 1/scale(t)."""

    def __init__(self, scale, mean=0.0):
        super().__init__()
        self.scale, self.mean = scale, mean

    def forward(self, x, t):
        t = t[:, None]
        v = (1 - t) ** 2 * 0.09 + t**2
        return ((t - (1 - t) * 0.09) / v * (x - (1 - t) * self.mean) - self.mean) / self.scale(t)


def test_the_search_finds_the_coefficients_that_a_network_was_spoiled_by():
    path, grid = RectifiedFlow(), Uniform()(RectifiedFlow(), 5)
    table = Table.of(DPMpp2M(), path, grid)
    # c_e runs from m = .9 at t = 1 to 1 at the last evaluation, t = .2: linear in t. A mean is what no c_x could make up for.
    spoiled = Denoiser(Spoiled(lambda t: 1 + (0.9 - 1) * (t - 0.2) / 0.8, 0.7), path, U()).bind()
    right = Denoiser(Spoiled(lambda t: 1.0, 0.7), path, U()).bind()
    part, unseen = (
        Starts(spoiled, x, sample(right, x, path, table, grid)) for x in (normal(64, 2, seed=1), normal(64, 2, seed=2))
    )
    own = search_q_sched(table, U(), [part], axis=(0.8, 0.9, 1.0, 1.1))
    assert error(own, path, grid, [unseen]) < 1e-8
    assert error(table, path, grid, [unseen]) > 1e-2


@pytest.mark.parametrize("prediction", [X0(), Eps(), V(), U(), Residual(), EDMPrecondition(0.5)], ids=name)
@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M(), UniPC(2), UniPC(2, uses="eps"), PLMS()], ids=name)
def test_scaled_outputs_are_those_of_a_scaled_network(solver, prediction):
    path, x, y = ResidualShift(), normal(4, 3, seed=1), normal(4, 3, seed=2)
    table = Table.of(solver, path, torch.tensor([14.0, 10, 6, 3, 1, 0], dtype=torch.float64))
    scales = torch.linspace(0.8, 1.1, table.nfe, dtype=torch.float64).tolist()

    class Net(nn.Module):
        """Its answer is scaled by the number of the evaluation."""

        def __init__(self, scales):
            super().__init__()
            self.scales = iter(scales)

        def forward(self, x, t):
            return (2 * x).sin() * next(self.scales)

    plain = sample(Denoiser(Net(scales), path, prediction).bind(y=y), x, path, table, table.grid, y)
    ones = Denoiser(Net([1.0] * table.nfe), path, prediction).bind(y=y)
    own = scaled_outputs(table, prediction, scales)
    torch.testing.assert_close(sample(ones, x, path, own, own.grid, y), plain, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=f"{table.nfe} evaluations"):
        scaled_outputs(table, prediction, (1.0,))


def test_scaled_states_are_scaled_before_every_step():
    path, grid = VP(), LogSNR(end=1e-3)(VP(), 4)
    world, x, scales = ring(path), normal(8, 2), (0.9, 1.05, 0.97, 1.1)
    table = Table.of(DDIM(), path, grid)
    scaled = scaled_states(table, scales)
    expected = x
    for c, t, s in zip(scales, grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        expected = expected * c
        times = torch.full((8,), t, dtype=torch.float64)
        expected = DDIM().step(path, expected, world(expected, times), times, torch.full_like(times, s))
    torch.testing.assert_close(sample(world, x, path, scaled, scaled.grid), expected, rtol=1e-10, atol=1e-10)
    plain = scaled_states(table, (1.0,) * 4)
    torch.testing.assert_close(
        sample(world, x, path, plain, plain.grid), sample(world, x, path, table, table.grid), rtol=0, atol=1e-14
    )
    with pytest.raises(ValueError, match="4 rows"):
        scaled_states(table, (1.0,))


def test_a_grid_search_is_exhaustive():
    assert grid_search(lambda a, b: (a - 2) ** 2 + (b + 1) ** 2, (0.0, 2.0, 4.0), (-1.0, 1.0)) == (2.0, -1.0)
