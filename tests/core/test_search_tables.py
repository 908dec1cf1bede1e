"""Searched tables: exact where they must be, never worse with more freedom, and the same after a round trip through JSON."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from worlds import normal, uniform

from fewstep.cli import main
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.grids import LogSNR, Uniform
from fewstep.paths import VP, RectifiedFlow
from fewstep.prediction import X0, U
from fewstep.sampling import sample
from fewstep.search import boss_steps, fit_olss, fit_table, reference, search_boss
from fewstep.search.evolve import Evolution
from fewstep.search.fit import Effort, Fit, grown, nearest, refined, regressed_tables, usual_grids
from fewstep.search.problem import Items, problem
from fewstep.search.regress import regressed
from fewstep.search.row_numbers import LARGEST, NOISE, OUTLIER, EndPoints, RowNumbers
from fewstep.search.starts import early_grid, error, fine_grid, hardest, joined, taken
from fewstep.search.trajectories import record
from fewstep.search_command import METHODS
from fewstep.solvers import DDIM, DPM3M, DPMpp2M, UniPC
from fewstep.solvers.schedule import SolverSchedule
from fewstep.solvers.table import Table
from fewstep.toy import gaussian, ring

QUICK = Effort(Evolution(population=12, keep=4, mutants=6, crosses=2, generations=3), rounds=((2, 3), (1, 6)))


def starts(world, n, seed, dim=2):
    return reference(world, world.path.start(normal(n, dim, seed=seed)), world.path)


def test_boss_is_the_least_of_all_ways():
    c = uniform(13, 13, seed=3)
    for k in (1, 2, 4, 12):
        nodes, cost = boss_steps(c, k)
        ways = ((0, *inner, 12) for inner in itertools.combinations(range(1, 12), k - 1))
        least = min(sum(c[i, j].item() for i, j in itertools.pairwise(way)) for way in ways)
        assert cost == pytest.approx(least, rel=1e-12)
        assert sum(c[i, j].item() for i, j in itertools.pairwise(nodes)) == pytest.approx(cost, rel=1e-12)


def test_boss_takes_every_node_of_a_teacher_of_as_many_steps():
    assert boss_steps(uniform(9, 9), 8)[0] == tuple(range(9))


def test_the_error_of_boss_falls_with_its_steps():
    world = ring(VP())
    part = [starts(world, 64, 1)]
    errors = [error(t, t.path, t.grid, part) for t in (search_boss(VP(), part, k) for k in (2, 4, 8, 16))]
    assert errors == sorted(errors, reverse=True)


def test_olss_is_exact_on_a_linear_world():
    """One Gaussian: x_T and the estimates of a few steps span all that the flow can reach in two coordinates."""
    world = gaussian(VP(), torch.tensor([0.5, -1.0]), torch.tensor([0.4, 1.5]), dim=2)
    part, unseen = starts(world, 64, 1), starts(world, 64, 2)
    table = fit_olss(VP(), [part], 6)
    assert error(table, VP(), table.grid, [unseen]) < 1e-2
    assert error(table, VP(), table.grid, [unseen]) < 0.1 * error(DDIM(), VP(), fine_grid(VP(), 6), [unseen])


@pytest.mark.parametrize(
    ("preset", "solver"),
    [
        (SolverSchedule.ddim, DDIM()),
        (SolverSchedule.dpmpp_2m, DPMpp2M()),
        (lambda grid: SolverSchedule.unipc(grid, 2), UniPC(2)),
        (lambda grid: SolverSchedule.unipc(grid, 3), UniPC(3)),
    ],
    ids=["ddim", "dpmpp_2m", "unipc_2", "unipc_3"],
)
def test_presets_of_schedules_are_their_solvers(preset, solver):
    path = VP()
    world, x = ring(path), normal(8, 2)
    for grid in (LogSNR(end=1e-3)(path, 9), Uniform()(path, 7)):
        ours, theirs = (sample(world, x, path, s, grid) for s in (preset(grid), solver))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [DDIM(), DPM3M(), UniPC(3)], ids=lambda s: type(s).__name__)
def test_a_table_is_the_solver_it_was_made_of_and_survives_a_file(solver, tmp_path):
    path, grid = VP(), LogSNR(end=1e-3)(VP(), 6)
    table = Table.of(solver, path, grid)
    loaded = Table.load(table.save(tmp_path / "table.json", {"why": "test"}))
    assert loaded == table
    world, x = ring(path), normal(8, 2)
    assert torch.equal(sample(world, x, path, loaded, loaded.grid), sample(world, x, path, solver, grid))


def test_a_table_refuses_another_path_another_grid_and_other_files(tmp_path):
    table = Table.of(DDIM(), VP(), Uniform()(VP(), 3))
    with pytest.raises(ValueError, match="made for"):
        table.plan(RectifiedFlow(), table.grid)
    with pytest.raises(ValueError, match="times of its own"):
        table.plan(VP(), Uniform()(VP(), 4))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="not a table"):
        Table.load(tmp_path / "bad.json")


def test_a_fitted_table_beats_the_solvers_it_began_from_on_starts_it_never_saw():
    world = ring(VP(), std=0.15)
    fit, select, unseen = (starts(world, n, seed) for n, seed in ((256, 1), (128, 2), (256, 3)))
    table = fit_table(VP(), [fit], [select], 6, torch.Generator().manual_seed(0), effort=QUICK)
    assert table.nfe == 6
    ours = error(table, VP(), table.grid, [unseen])
    known = [error(s, VP(), fine_grid(VP(), 6), [unseen]) for s in (DDIM(), DPMpp2M(), UniPC(2))]
    assert ours < 0.5 * min(known)


def test_a_table_refined_on_more_starts_is_better_on_others():
    world = ring(VP(), std=0.15)
    fit, more, select, unseen = (starts(world, n, seed) for n, seed in ((32, 1), (512, 4), (256, 2), (512, 3)))
    table = fit_table(VP(), [fit], [select], 5, torch.Generator().manual_seed(0), effort=QUICK)
    better = refined(table, [fit, more], [select], 12)
    assert error(better, VP(), better.grid, [select]) < error(table, VP(), table.grid, [select])
    assert error(better, VP(), better.grid, [unseen]) < 0.95 * error(table, VP(), table.grid, [unseen])
    assert refined(better, [fit], [select], 0) == better


def test_a_table_of_cancelling_weights_is_no_result():
    """Two weights of +-1e4 on estimates of nearly one time: exact where the estimate is linear in time, wild elsewhere."""
    path, world = VP(), ring(VP(), std=0.15)
    fit, select = starts(world, 64, 1), starts(world, 64, 2)
    table = Table.of(UniPC(2), path, fine_grid(path, 5))
    two = next(i for i, row in enumerate(table.lines) if len(row.e) > 1)
    lines, row = list(table.lines), table.lines[two]
    lines[two] = replace(row, e=(row.e[0] + 1e4, row.e[1] - 1e4, *row.e[2:]))
    wild = Table(path, tuple(lines))
    numbers = RowNumbers(wild, 7.0, anchor=False)
    assert not numbers.steady(numbers.v)
    assert RowNumbers(table, 7.0, anchor=False).steady(RowNumbers(table, 7.0, anchor=False).v)
    assert math.isinf(Fit(wild, 7.0, [select]).error)
    found = fit_table(path, [fit], [select], 5, torch.Generator().manual_seed(0), initial=[wild], effort=QUICK)
    assert max(sum(map(abs, (*row.x, *row.e))) for row in found.lines) <= LARGEST


@pytest.mark.parametrize("solver", [DDIM(), UniPC(3), DPM3M()], ids=lambda s: type(s).__name__)
def test_a_grown_table_makes_the_same_samples(solver):
    path = VP()
    table, world, x = Table.of(solver, path, LogSNR(end=1e-3)(path, 4)), ring(path), normal(8, 2)
    larger = grown(table, 9)
    assert larger.nfe == 9
    assert all(a > b for a, b in itertools.pairwise(larger.times))
    ours, theirs = (sample(world, x, path, t, t.grid) for t in (larger, table))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


class Velocity(torch.nn.Module):
    """The exact velocity of a rectified flow to N(0.5, 0.3^2), as a network of one unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        t = t[:, None]
        v = (1 - t) ** 2 * 0.09 + t**2
        centred = x - (1 - t) * 0.5
        return t / v * centred - 0.5 - (1 - t) * 0.09 / v * centred


def test_the_gradient_of_the_end_points_is_that_of_their_sum_weights_and_all():
    world, path = ring(VP()), VP()
    part = starts(world, 64, 1)
    numbers = RowNumbers(Table.of(UniPC(2), path, LogSNR(end=1e-3)(path, 4)), clean=7.0, anchor=False)
    problem = EndPoints(numbers, [part])
    assert problem.normal(numbers.v).square == problem.square(numbers.v)
    generator = torch.Generator().manual_seed(0)
    for large in (1.0, 3.0):
        v = torch.where(problem.weights.bool(), large * numbers.v, numbers.v)
        g = problem.normal(v).g
        d = torch.randn(len(v), generator=generator, dtype=torch.float64) * (v.abs() + 0.01)
        up, down = (problem.square(v + h * d) for h in (1e-6, -1e-6))
        assert (up - down) / 2e-6 == pytest.approx(2 * (g @ d).item(), rel=1e-3)


def test_iterates_of_a_later_round_are_measured_on_its_own_starts():
    """The error to beat is that on the new starts: one from easier starts would reject whatever comes."""
    path, world = VP(), ring(VP())
    fit, few, more = starts(world, 128, 1), starts(world, 4, 2), starts(world, 256, 3)
    table = Table.of(UniPC(2), path, LogSNR(end=1e-3)(path, 6))
    easy = few._replace(target=sample(world, few.x, path, table, table.grid))  # no error at all
    one = Fit(table, clean=7.0, select=[easy])
    assert one.error < 1e-9
    before = error(table, path, table.grid, [few, more])
    one.run([fit], 3, [few, more])
    assert one.error == pytest.approx(error(one.table, path, one.table.grid, [few, more]), rel=1e-12)
    assert one.error < 0.9 * before


def test_large_weights_cost_as_errors_of_the_estimates_would():
    """NOISE median(e) of independent error in every estimate that a single row weighs adds NOISE^2 median(e)^2 sum of squares."""
    world, path = ring(VP()), VP()
    part = starts(world, 512, 1)
    numbers = RowNumbers(Table.of(DDIM(), path, Uniform()(path, 1)), clean=7.0, anchor=False)
    problem = EndPoints(numbers, [part])
    problem.normal(numbers.v)
    e2 = (
        sample(world, part.x, path, Table.of(DDIM(), path, Uniform()(path, 1)), Uniform()(path, 1)) - part.target
    ).square()
    median = e2.sum(1).median().item()
    cost = 512 * NOISE**2 * median * (numbers.v[problem.weights.bool()] ** 2).sum().item()
    c2 = OUTLIER**2 * median
    assert problem.square(numbers.v) == pytest.approx((c2 * (e2.sum(1) / c2).log1p()).sum().item() + cost, rel=1e-9)


def test_times_move_to_the_nearest_nodes_and_never_fall_together():
    grid = fine_grid(VP(), 20)
    assert nearest(grid, grid[[0, 3, 7, 8, 20]]) == (2, 6, 7)
    for k in (1, 5, 19):
        for own in usual_grids(VP(), k + 1):
            nodes = nearest(grid, own)
            assert list(nodes) == sorted(set(nodes))
            assert len(nodes) == k
            assert 0 <= min(nodes)
            assert max(nodes) <= 18


def test_regressions_begin_with_the_best_usual_grids():
    world = ring(VP())
    part = [starts(world, 64, 1)]
    found = regressed_tables(VP(), part, 5, torch.Generator().manual_seed(0), QUICK)
    grid = early_grid(VP(), QUICK.nodes)
    usual = {nearest(grid, own) for own in usual_grids(VP(), 5)}

    def nodes(table):
        return tuple((grid - t).abs().argmin().item() - 1 for t in table.times[1:-1])

    assert all(nodes(t) in usual for t in found[: QUICK.fixed])
    assert len({nodes(t) for t in found}) == len(found)
    teacher = record(part[0], VP(), SolverSchedule.unipc(grid, 3, "exact"), grid)
    errors = [error(t, VP(), t.grid, [part[0]._replace(target=teacher.states[-1])]) for t in found]
    others = [e for t, e in zip(found[QUICK.fixed :], errors[QUICK.fixed :], strict=True) if nodes(t) in usual]
    assert len(others) >= 5
    assert max(errors[: QUICK.fixed]) <= min(others)
    # Ranked by the recorded end as the regression leaves it, which sampling agrees with up to the rounding of its least squares.
    left = [regressed(VP(), [teacher], (0, *(v + 1 for v in nodes(t)), len(grid) - 1))[1] for t in found]
    assert left[QUICK.fixed :] == sorted(left[QUICK.fixed :])
    assert errors == pytest.approx(left, rel=1e-5)


def test_the_hardest_starts_are_those_near_a_border():
    world, path = ring(VP()), VP()
    part = starts(world, 512, 1)
    solvers = [(s, LogSNR(end=1e-3)(path, 6)) for s in (DDIM(), UniPC(2))]
    chosen = hardest(part, path, solvers, 32)
    gaps = torch.stack([(sample(world, part.x, path, s, g) - part.target).norm(dim=1) for s, g in solvers]).amax(0)
    assert len(chosen.unique()) == 32
    assert gaps[chosen].min() >= gaps[[i for i in range(512) if i not in set(chosen.tolist())]].max()
    # Modes are 45 degrees apart, the borders half way between them.
    end = part.target[chosen]
    off = (torch.atan2(part.x[:, 1], part.x[:, 0]) / (torch.pi / 4) - 0.5).remainder(1.0)
    border = torch.minimum(off, 1 - off)
    assert border[chosen].mean() < 0.5 * border.mean()
    both = joined(taken(part, chosen), taken(part, chosen[:1]))
    assert torch.equal(both.target, torch.cat([end, end[:1]]))
    assert both.y is None


def test_end_points_may_be_those_of_another_network():
    path, items = RectifiedFlow(), Items((2,), {}, None)
    model, other = (Generator(Denoiser(Velocity(), path, p), DDIM(), Uniform(), 8) for p in (U(), X0()))
    own = problem(other, items, starts=4, steps=20)
    mixed = problem(model, items, starts=4, steps=20, target=other)
    for a, b in zip((*own.fit, *own.report), (*mixed.fit, *mixed.report), strict=True):
        assert torch.equal(a.target, b.target)
        assert b.denoise.denoiser is model.denoiser
    assert not torch.equal(problem(model, items, starts=4, steps=20).fit[0].target, own.fit[0].target)
    with pytest.raises(ValueError, match="cannot be reached"):
        problem(model, items, starts=4, target=Generator(Denoiser(Velocity(), VP(), U()), DDIM(), Uniform(), 8))


@pytest.mark.parametrize("method", METHODS)
def test_the_verb_writes_a_table_that_samples(method, tmp_path, capsys, monkeypatch):
    denoiser = Denoiser(Velocity(), RectifiedFlow(), U())
    model = Generator(denoiser, DDIM(), Uniform(), 8)
    monkeypatch.setattr(
        "fewstep.artifacts.load", lambda source: model
    )  # saving would need Velocity in a trusted package
    out = tmp_path / "table.json"
    argv = ["search-schedule", "model", "--nfe", "4", "--method", method, "--shape", "2", "--starts", "32"]
    with pytest.raises(SystemExit) as end:
        main([*argv, "--quick", "--out", str(out), "--json"])
    assert end.value.code in (0, None)
    facts = json.loads(capsys.readouterr().out)
    table = Table.load(out)
    assert table.nfe == facts["nfe"] == 4
    assert facts["error"] < facts["fixed"]["ddim"]
    x = torch.randn(4, 2)
    assert sample(denoiser.bind(), x, RectifiedFlow(), table, table.grid).isfinite().all()


def test_the_verb_refuses_bad_input_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["search-schedule", str(tmp_path), "--nfe", "4", "--out", str(tmp_path / "t.json")])
    assert end.value.code
    assert capsys.readouterr().err.count("\n") == 1
