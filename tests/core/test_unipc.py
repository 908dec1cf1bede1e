"""UniPC against the paper's algorithm written out, exact integrals, exact worlds and the official vectors."""

import math

import numpy as np
import pytest
import torch
from golden_cases import Golden
from golden_families.unipc import unipc
from worlds import GOLDEN, PATHS, correlated, golden_ids, normal, over, time_at

from fewstep.artifacts import build, describe
from fewstep.estimate import Estimate
from fewstep.grids import Uniform
from fewstep.paths import EDM, VP, RectifiedFlow, ResidualShift, Trig
from fewstep.sampling import sample
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.unipc import UniPC
from fewstep.toy import gaussian

INSIDE = {
    "vp": (VP(), 1.0, 0.01),
    "edm": (EDM(), 20.0, 0.05),
    "rf": (RectifiedFlow(), 0.95, 0.05),
    "trig": (Trig(), 1.5, 0.05),
    "resshift": (ResidualShift(), 14.0, 2.0),
}
EACH_PATH = pytest.mark.parametrize(("path", "hi", "lo"), [pytest.param(*v, id=k) for k, v in INSIDE.items()])
EACH_FORM = pytest.mark.parametrize("uses", ["x0", "eps"])


def lambda_grid(path, hi, lo, n, grade=1.0):
    """lambda at (i/n)^grade of its range: grade > 1 starts with fine steps."""
    ends = path.log_snr(torch.tensor([hi, lo], dtype=torch.float64))
    t = path.time_of_log_snr(ends[0] + torch.linspace(0, 1, n + 1, dtype=torch.float64) ** grade * (ends[1] - ends[0]))
    t[0], t[-1] = hi, lo
    return t


def gaussian_start(path, hi, std=1.8):
    """(world, x at time hi, y) of one Gaussian in two dimensions."""
    y = normal(16, 2, seed=1) if path.anchored else None
    world = gaussian(path, torch.tensor([0.5, -1.0]), std, dim=2, y=y)
    x0 = world.draw(16, torch.Generator().manual_seed(0))
    return world, path.sample(x0, normal(16, 2, seed=2), torch.full((16,), hi, dtype=torch.float64), y), y


# --- the paper's algorithm -------------------------------------------------------------------------------------


def algorithm(denoise, x, path, grid, p, uses, b, corrector, tail):
    """Algorithms 1 and 2 of arXiv:2302.04867 step by step, with the official halves; x without anchor."""
    n, past = len(grid) - 1, []
    lam = path.log_snr(grid).numpy()
    a, _, s = (v.numpy() for v in path.schedule(grid))

    def model(x, i):
        return getattr(denoise(x, grid[i].item()), uses)

    def weights(rs, h, halved):
        u = -h if uses == "x0" else h
        scale = u if b == "bh1" else math.expm1(u)
        target, phi = [], math.expm1(u) / u
        for k in range(1, len(rs) + 1):
            phi = (phi - 1 / math.factorial(k)) / u
            target.append(math.factorial(k) * u * phi / scale)
        if halved and b in ("bh1", "bh2"):
            return scale * np.array([0.5])
        return scale * np.linalg.solve(np.array([[r**k for r in rs] for k in range(len(rs))]), np.array(target))

    for i in range(n):
        past = [model(x, 0)] if i == 0 else past
        order = i + 1 if i + 1 < p else min(p, n - i) if tail else p
        h = lam[i + 1] - lam[i]
        rs = [(lam[i - j] - lam[i]) / h for j in range(1, order)]
        ds = [(past[j] - past[0]) / rs[j - 1] for j in range(1, order)]
        keep, gain, u = (s[i + 1] / s[i], a[i + 1], -h) if uses == "x0" else (a[i + 1] / a[i], s[i + 1], h)
        base = keep * x - gain * math.expm1(u) * past[0]
        x = base
        if ds:
            x = base - gain * sum(w * d for w, d in zip(weights(rs, h, order == 2), ds, strict=True))
        if i == n - 1:
            return x
        new = model(x, i + 1)
        if corrector:
            ws = weights([*rs, 1.0], h, order == 1)
            x = base - gain * sum(w * d for w, d in zip(ws, [*ds, new - past[0]], strict=True))
        past = [new, *past]


@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("b", ["bh1", "bh2", "vary"])
@pytest.mark.parametrize("p", [1, 2, 3, 4])
@EACH_FORM
def test_the_folded_rows_are_the_predictor_and_corrector_of_the_paper(uses, p, b, tail, corrector):
    path, n = VP(), 6
    world, x, grid = correlated(path), normal(4, 3), Uniform(end=1e-3)(path, n)
    ours = sample(world, x, path, UniPC(p, uses=uses, b=b, corrector=corrector, tail=tail), grid)
    torch.testing.assert_close(ours, algorithm(world, x, path, grid, p, uses, b, corrector, tail), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case_id", golden_ids("unipc"))
def test_official_samplers_are_reproduced(case_id):
    case = next(c for c in Golden(GOLDEN / "solvers_dev.json").cases() if c["id"] == case_id)
    for _, ours, official in unipc(case):
        torch.testing.assert_close(ours, official, rtol=case["rtol"], atol=case["atol"])


# --- identities ------------------------------------------------------------------------------------------------


@EACH_FORM
@EACH_PATH
def test_unip_1_is_ddim(path, hi, lo, uses):
    world, x, y = gaussian_start(path, hi)
    grid = lambda_grid(path, hi, lo, 5)
    ddim = sample(world, x, path, DDIM(), grid, y)
    ours = sample(world, x, path, UniPC(1, uses=uses, corrector=False), grid, y)
    torch.testing.assert_close(ours, ddim, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", over(PATHS))
def test_unip_2_with_b2_is_dpmpp_2m(path):
    """From end to end, so also where lambda is infinite."""
    grid = Uniform()(path, 5)
    rows = zip(UniPC(2, corrector=False, tail=False).plan(path, grid), DPMpp2M().plan(path, grid), strict=True)
    for ours, dpm in rows:
        torch.testing.assert_close(torch.tensor(ours.x + ours.e), torch.tensor(dpm.x + dpm.e), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [2, 3, 4])
@EACH_FORM
def test_unip_of_exact_weights_integrates_polynomials_in_lambda(uses, p):
    """Exponential Adams: s_s INT e^l q(l) dl of the data form, -a_s INT e^-l q(l) dl of the noise form, exact up to degree p - 1."""
    path, n = RectifiedFlow(), 6
    grid = torch.tensor([0.95, 0.8, 0.7, 0.45, 0.3, 0.12, 0.05], dtype=torch.float64)
    lam, (a, _, s) = path.log_snr(grid), path.schedule(grid)
    points, gauss = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(40))
    for i, row in enumerate(UniPC(p, uses=uses, b="vary", corrector=False, tail=False).plan(path, grid)):
        where, half = (lam[i + 1] + lam[i]) / 2 + (lam[i + 1] - lam[i]) / 2 * points, (lam[i + 1] - lam[i]) / 2
        assert len(row.e) == min(i + 1, p)
        for degree in range(len(row.e)):
            kernel = s[i + 1] * where.exp() if uses == "x0" else -a[i + 1] * (-where).exp()
            exact = (kernel * gauss * half * where**degree).sum().item()
            assert sum(w * lam[i - k].item() ** degree for k, w in enumerate(row.e)) == pytest.approx(exact, rel=1e-10)
    assert i == n - 1


def test_exact_weights_solve_estimates_linear_in_lambda_from_the_first_step():
    """The corrector makes the first step, of one node, exact as well."""
    path, slope = VP(), normal(4, 3, seed=1)

    def linear(x, t):
        return Estimate(slope * path.log_snr(torch.tensor(t, dtype=torch.float64)), x)

    grid, x = lambda_grid(path, 1.0, 0.01, 5), normal(4, 3)
    ours = sample(linear, x, path, UniPC(2, b="vary", tail=False), grid)
    lam, (a, _, s) = path.log_snr(grid), path.schedule(grid)
    # s INT e^l l dl = s [e^l (l - 1)]
    gain = a[-1] * (lam[-1] - 1) - a[0] * s[-1] / s[0] * (lam[0] - 1)
    torch.testing.assert_close(ours, s[-1] / s[0] * x + gain * slope, rtol=1e-12, atol=1e-12)


def test_the_forms_of_b_differ_in_steps_of_two_nodes_alone():
    """Without start and end (orders 1 and 2 there), predictor and corrector of order 3 have the same weights for every B(h)."""
    path, grid = VP(), lambda_grid(VP(), 0.9, 0.05, 9)
    first, *others = (UniPC(3, b=b, tail=False).plan(path, grid) for b in ("vary", "bh1", "bh2"))
    for other in others:
        for i, (ours, theirs) in enumerate(zip(first, other, strict=True)):
            same = torch.allclose(torch.tensor(ours.e), torch.tensor(theirs.e), rtol=1e-12, atol=1e-12)
            assert same == (i not in (1, 2))


@pytest.mark.parametrize("solver", [UniPC(3), UniPC(2, uses="eps", b="bh1")], ids=str)
def test_paths_with_the_same_log_snr_grid_have_the_same_data(solver):
    ends, lambdas = [], torch.linspace(-3, 3, 9).tolist()
    for path in (VP(), EDM(), RectifiedFlow(), Trig()):
        grid = torch.tensor([time_at(path, lam) for lam in lambdas], dtype=torch.float64)
        a, _, s = path.schedule(grid)
        ends.append(sample(correlated(path), a[0] * 0.3 + s[0] * normal(6, 3), path, solver, grid) / a[-1])
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [UniPC(3), UniPC(2, uses="eps")], ids=str)
def test_shifting_the_anchor_shifts_the_end_by_its_weight(solver):
    path = ResidualShift()
    grid, x, y, c = (
        torch.linspace(14, 2, 6, dtype=torch.float64),
        normal(6, 3),
        normal(6, 3, seed=1),
        normal(6, 3, seed=2),
    )
    b = path.schedule(grid)[1]
    still = sample(correlated(path, y), x, path, solver, grid, y)
    moved = sample(correlated(path, y + c), x + b[0] * c, path, solver, grid, y + c)
    torch.testing.assert_close(moved, still + b[-1] * c, rtol=1e-10, atol=1e-10)


# --- order -----------------------------------------------------------------------------------------------------


def slope(solver, path, hi, lo, steps, grade=1.0, std=1.8):
    world, x, y = gaussian_start(path, hi, std)
    exact = world.flow_map(x, hi, lo)
    errors = [
        (sample(world, x, path, solver, lambda_grid(path, hi, lo, n, grade), y) - exact).abs().max() for n in steps
    ]
    assert errors[1] > 1e-10  # far above rounding
    return math.log2(errors[0] / errors[1])


MEASURED = [
    UniPC(1, tail=False),
    UniPC(1, uses="eps", b="bh1", tail=False),
    UniPC(2, tail=False),
    UniPC(2, b="bh1", tail=False),
    UniPC(2, b="vary", tail=False),
    UniPC(2, uses="eps", tail=False),
    UniPC(2, corrector=False, tail=False),
    UniPC(2, b="vary_official", tail=False),
]


@EACH_PATH
@pytest.mark.parametrize("solver", MEASURED, ids=str)
def test_halving_the_step_shows_the_declared_order(solver, path, hi, lo):
    assert slope(solver, path, hi, lo, (64, 128)) == pytest.approx(solver.order, abs=0.25)


@EACH_PATH
@pytest.mark.parametrize(("solver", "order"), [(UniPC(3, tail=False), 4), (UniPC(3, corrector=False, tail=False), 3)])
def test_after_a_fine_start_the_order_is_p_and_one_more_with_the_corrector(solver, order, path, hi, lo):
    assert slope(solver, path, hi, lo, (64, 128), grade=2.5, std=0.4 if path.anchored else 1.8) == pytest.approx(
        order, abs=0.35
    )


@pytest.mark.parametrize(("path", "hi", "lo"), [INSIDE["vp"], INSIDE["resshift"]], ids=["vp", "resshift"])
@pytest.mark.parametrize("solver", [UniPC(2), UniPC(3), UniPC(3, tail=False), UniPC(4, tail=False)], ids=str)
def test_the_declared_order_is_reached_from_a_cold_start_and_with_a_tail(solver, path, hi, lo):
    world, x, y = gaussian_start(path, hi)
    exact, errors = world.flow_map(x, hi, lo), []
    for n in (64, 256):
        errors.append((sample(world, x, path, solver, lambda_grid(path, hi, lo, n), y) - exact).abs().max())
    assert math.log2(errors[0] / errors[1]) / 2 > solver.order - 0.25


# --- few steps, singular ends, evaluations ---------------------------------------------------------------------

EVERY = [UniPC(p, uses=uses) for p in (1, 3) for uses in ("x0", "eps")]
EVERY += [UniPC(2, b="bh1"), UniPC(3, b="vary"), UniPC(3, b="vary_official"), UniPC(3, corrector=False, tail=False)]
ENDS = {k: PATHS[k] for k in ("vp", "ddpm", "edm", "ve", "rf", "trig", "resshift15", "resshift1")}


@pytest.mark.parametrize("path", over(ENDS))
@pytest.mark.parametrize("solver", EVERY, ids=str)
def test_one_to_four_steps_from_end_to_end_are_finite_and_take_one_evaluation_each(solver, path):
    y = normal(5, 3, seed=1)
    world, x, times = correlated(path, y), path.start(normal(5, 3), y), []

    def watched(x, t):
        times.append(t)
        return world(x, t)

    for n in (1, 2, 3, 4):
        grid = Uniform()(path, n)
        times.clear()
        assert sample(watched, x, path, solver, grid, y).isfinite().all()
        assert times == grid[:-1].tolist()


@pytest.mark.parametrize("path", over({k: PATHS[k] for k in ("vp", "edm", "rf", "trig", "resshift15")}))
@pytest.mark.parametrize("solver", [UniPC(3), UniPC(2, b="bh1"), UniPC(3, uses="eps")], ids=str)
def test_an_oracle_of_the_data_is_met_exactly(solver, path):
    x0, y = normal(5, 3, seed=3), normal(5, 3, seed=1)

    def oracle(x, t):
        a, b, s = path.schedule(torch.tensor(t, dtype=torch.float64))
        return Estimate(x0, (x - a * x0 - b * y) / s)

    end = sample(oracle, path.start(normal(5, 3), y), path, solver, Uniform()(path, 6), y)
    torch.testing.assert_close(end, x0, rtol=1e-10, atol=1e-10)


def test_steps_of_infinite_lambda_are_first_order():
    """Out of a = 0 and into s = 0; the step after an infinite one has no past to use, and no correction of it."""
    path, grid = RectifiedFlow(), torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    for solver in (UniPC(3, tail=False), UniPC(3, b="bh1", tail=False)):
        ours, ddim = solver.plan(path, grid), DDIM().plan(path, grid)
        assert ours[0] == ddim[0]
        assert len(ours[1].e) == 1
        torch.testing.assert_close(ours[1].e[0], ddim[1].e[0], rtol=1e-12, atol=1e-12)
        assert ours[2].x == (0.0,)
        assert ours[2].e == pytest.approx((1.0,))


def test_the_tail_ends_with_order_one():
    path, grid = VP(), lambda_grid(VP(), 0.9, 0.05, 6)
    orders = [len(r.e) for r in UniPC(3, corrector=False).plan(path, grid)]
    assert orders == [1, 2, 3, 3, 2, 1]
    assert [len(r.e) for r in UniPC(3, corrector=False, tail=False).plan(path, grid)] == [1, 2, 3, 3, 3, 3]
    assert [len(r.e) for r in UniPC(4, corrector=False).plan(path, grid[:5])] == [1, 2, 3, 1]  # warm-up is not lowered


# --- per-sample times, artifacts, refusals ---------------------------------------------------------------------


@pytest.mark.parametrize("solver", [UniPC(2, tail=False), UniPC(3, uses="eps", tail=False), UniPC(1)], ids=str)
def test_stages_at_per_sample_times_are_the_rows_of_the_plan(solver):
    path, grid = VP(), lambda_grid(VP(), 0.9, 0.05, 6)
    rows = solver.plan(path, grid)
    back = [torch.cat([grid.new_full((k,), math.nan), grid])[:6] for k in range(1, solver.past + 1)]
    (stage,) = solver.stages(path, grid[:-1], grid[1:], back)
    for i, row in enumerate(rows):
        ours = torch.stack([w[i] for w in stage.e])
        torch.testing.assert_close(ours[: len(row.e)], torch.tensor(row.e, dtype=torch.float64), rtol=1e-11, atol=1e-13)
        assert (ours[len(row.e) :] == 0).all()


def test_one_step_at_per_sample_times_is_ddim():
    path, z, estimate = VP(), normal(4, 3), Estimate(normal(4, 3, seed=1), normal(4, 3, seed=2))
    t, s = torch.tensor([1.0, 0.7, 0.5, 0.3]), torch.tensor([0.6, 0.1, 0.45, 0.0])
    for solver in (UniPC(3), UniPC(1, corrector=False)):
        torch.testing.assert_close(solver.step(path, z, estimate, t, s), DDIM().step(path, z, estimate, t, s))


@pytest.mark.parametrize("solver", EVERY, ids=str)
def test_configurations_survive_an_artifact(solver):
    assert build(describe(solver)) == solver


def test_orders_and_forms_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="p >= 1, got 0"):
        UniPC(0)
    with pytest.raises(ValueError, match="'bh3'"):
        UniPC(b="bh3")  # pyright: ignore[reportArgumentType]
