"""DEIS, LMS, iPNDM, PNDM/PLMS and momentum: measured order, identities, hand-written references, singular ends."""

import itertools
import math

import numpy as np
import pytest
import torch
from worlds import correlated, name, normal

from fewstep.denoiser import Denoiser
from fewstep.estimate import Estimate
from fewstep.grids import LogSNR, Uniform
from fewstep.paths import DDPM, EDM, VP, Cosine, RectifiedFlow, ResidualShift, Trig
from fewstep.prediction import U, V
from fewstep.sampling import Callback, sample
from fewstep.solvers.bdia import BDIA
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.deis import DEIS, rises
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.exponential import Step
from fewstep.solvers.heavy_ball import GHVB, HeavyBall, Nesterov
from fewstep.solvers.heavy_ball_2m import HeavyBall2M
from fewstep.solvers.ipndm import IPNDM, adams_bashforth
from fewstep.solvers.lms import LMS
from fewstep.solvers.pndm import PLMS, PNDM
from fewstep.toy import gaussian

INTERVALS = {
    "vp": (VP(), 1.0, 0.01),
    "edm": (EDM(), 20.0, 0.05),
    "rf": (RectifiedFlow(), 0.95, 0.05),
    "trig": (Trig(), 1.5, 0.05),
    "resshift": (ResidualShift(), 14.0, 2.0),
}
EVERY_PATH = pytest.mark.parametrize(("path", "hi", "lo"), [pytest.param(*v, id=k) for k, v in INTERVALS.items()])
VARIABLES = ("t", "rho", "lambda")
FIXED = [IPNDM(1), IPNDM(2), IPNDM(4), PLMS(2), PLMS(4), PNDM(), HeavyBall(0.8), HeavyBall(1.5), HeavyBall(2.0)]
FIXED += [Nesterov(1.5), Nesterov(2.0), GHVB(0.8), GHVB(1.5), GHVB(1.8), GHVB(3.5), GHVB(4.0)]
MULTISTEP = [*(DEIS(k, v) for v in VARIABLES for k in (0, 1, 2, 3)), LMS(), LMS(3), *FIXED]


def label(solver):
    return name(solver) + "-".join(str(v) for v in vars(solver).values())


def between(path, hi, lo, share):
    """Times between hi and lo whose lambda is at the given shares of the way."""
    ends = path.log_snr(torch.tensor([hi, lo], dtype=torch.float64))
    t = path.time_of_log_snr(ends[0] + share * (ends[1] - ends[0]))
    t[0], t[-1] = hi, lo
    return t


def unit(n):
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)


class Exact:
    """The exact denoiser of one Gaussian, its scalars tabulated: long trajectories are cheap."""

    mean, std = torch.tensor([0.5, -1.0], dtype=torch.float64), 0.4

    def __init__(self, path, y):
        self.path, self.y = path, y

    def prepare(self, times, x):
        t = torch.tensor(times, dtype=torch.float64)
        self.table = dict(zip(times, zip(*(v.tolist() for v in self.path.schedule(t)), strict=True), strict=True))

    def __call__(self, x, t):
        a, b, s = self.table[t]
        centred = (x if self.y is None else x - b * self.y) - a * self.mean
        centred = centred / (a**2 * self.std**2 + s**2)
        return Estimate(self.mean + a * self.std**2 * centred, s * centred)


def slope(solver, path, hi, lo, grids):
    """log2 of the ratio of the errors on two grids, against the exact flow of a Gaussian."""
    y = normal(16, 2, seed=1) if path.anchored else None
    world = Exact(path, y)
    x = path.sample(0.5 + 0.4 * normal(16, 2), normal(16, 2, seed=2), torch.full((16,), hi, dtype=torch.float64), y)
    exact = gaussian(path, world.mean, world.std, dim=2, y=y).flow_map(x, hi, lo)
    errors = [(sample(world, x, path, solver, grid, y) - exact).abs().max().item() for grid in grids]
    assert errors[1] > 1e-10  # above rounding
    return math.log2(errors[0] / errors[1])


# --- order -----------------------------------------------------------------------------------------------------


@EVERY_PATH
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("variable", VARIABLES)
def test_deis_of_degree_k_is_of_order_k_plus_1(variable, degree, path, hi, lo):
    """The grid starts with steps of order h^2, so that the first-order start-up step does not count."""
    solver = DEIS(degree, variable)
    measured = slope(solver, path, hi, lo, [between(path, hi, lo, unit(n) ** 2) for n in (100, 200)])
    assert solver.order == degree + 1
    assert measured == pytest.approx(solver.order, abs=0.35)


@EVERY_PATH
@pytest.mark.parametrize("solver", FIXED, ids=label)
def test_fixed_weights_are_of_second_order_at_most_on_a_general_grid(solver, path, hi, lo):
    measured = slope(solver, path, hi, lo, [between(path, hi, lo, unit(n)) for n in (100, 200)])
    assert measured == pytest.approx(solver.order, abs=0.25)


@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), Trig()], ids=name)
@pytest.mark.parametrize("solver", [IPNDM(3), GHVB(2.5), GHVB(3.0), IPNDM(4)], ids=label)
def test_fixed_weights_keep_their_nominal_order_where_rho_is_evenly_spaced(solver, path):
    """Third order and more; HeavyBall(2.5) stays at the first."""
    rho = 4 + unit(400) * (0.05 - 4)
    grids = [path.time_of_log_snr(-rho[::k].log()) for k in (2, 1)]
    hi, lo = grids[0][0].item(), grids[0][-1].item()
    assert slope(solver, path, hi, lo, grids) > 2.7
    assert slope(HeavyBall(2.5), path, hi, lo, grids) == pytest.approx(1, abs=0.3)


# --- DEIS ------------------------------------------------------------------------------------------------------

EVENLY = {
    "t": lambda path, t: t,
    "rho": lambda path, t: (-path.log_snr(t)).exp(),
    "lambda": lambda path, t: path.log_snr(t),
}


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("path", [VP(), EDM(3.0), RectifiedFlow(), Trig(), ResidualShift(steps=4)], ids=name)
def test_deis_integrates_polynomials_exactly(path, variable):
    """Four estimates that follow a cubic q in v give a_s INT q(v) drho, here by the trapezoidal rule on a fine grid."""
    span = path.t_max - path.t_min
    grid = path.t_min + span * torch.tensor([0.9, 0.7, 0.6, 0.4, 0.3], dtype=torch.float64)
    row = DEIS(3, variable).plan(path, grid)[-1]
    v = EVENLY[variable]
    q = lambda t: 0.3 + 0.5 * v(path, t) - 0.2 * v(path, t) ** 2 + 0.1 * v(path, t) ** 3
    ours = sum(w * q(t) for w, t in zip(row.e, grid[:-1].flip(0), strict=True))
    fine = torch.linspace(grid[-2], grid[-1], 200_001, dtype=torch.float64)
    rho, a = (-path.log_snr(fine)).exp(), path.schedule(grid[-1])[0]
    exact = a * ((q(fine)[1:] + q(fine)[:-1]) / 2 * rho.diff()).sum()
    assert ours == pytest.approx(exact.item(), rel=1e-8)
    assert sum(row.e) == pytest.approx((a * (rho[-1] - rho[0])).item(), rel=1e-13)


@pytest.mark.parametrize(
    ("path", "t", "s"),
    [
        (VP(), 1.0, 0.5),
        (VP(), 0.1, 0.0),
        (RectifiedFlow(), 0.999, 0.9),
        (RectifiedFlow(), 0.5, 0.0),
        (Cosine(), 0.99, 0.8),
    ],
)
def test_the_quadrature_of_deis_t_is_exact_at_both_ends(path, t, s):
    """Against Gauss-Legendre with 20 nodes on panels that halve towards both ends of the step."""
    edges = np.concatenate([[0], 0.5 ** np.arange(40, 0, -1)])
    edges = np.concatenate([edges, 1 - edges[-2::-1]])
    x, w = np.polynomial.legendre.leggauss(20)
    lengths = np.diff(edges)[:, None]
    nodes = torch.tensor((edges[:-1, None] + lengths * (x + 1) / 2).ravel())
    weights = torch.tensor((lengths * w / 2).ravel())
    t, s = torch.tensor(t, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
    (a, _, noise), (at, _, st) = path.schedule(t + nodes * (s - t)), path.schedule(t)
    for m, ours in enumerate(rises(path, t, s, 3), 1):
        exact = m * (weights * nodes ** (m - 1) * (noise / a - st / at)).sum()
        assert ours.item() == pytest.approx(exact.item(), rel=1e-12)


@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), DDPM(), ResidualShift()], ids=name)
@pytest.mark.parametrize(
    "solver", [*(DEIS(0, v) for v in VARIABLES), LMS(1), IPNDM(1), HeavyBall(1), GHVB(1)], ids=label
)
def test_one_estimate_is_ddim(solver, path):
    y = normal(5, 3, seed=1) if path.anchored else None
    world, x, grid = correlated(path, y), path.start(normal(5, 3), y), Uniform()(path, 7)
    ours, ddim = (sample(world, x, path, s, grid, y) for s in (solver, DDIM()))
    torch.testing.assert_close(ours, ddim, rtol=1e-11, atol=1e-11)


def test_deis_in_t_and_in_rho_are_the_same_where_t_is_rho():
    path, grid = EDM(), torch.tensor([80.0, 30, 10, 4, 1, 0.2, 0], dtype=torch.float64)
    for in_t, in_rho in zip(DEIS(3, "t").plan(path, grid), DEIS(3, "rho").plan(path, grid), strict=True):
        assert in_t.e == pytest.approx(in_rho.e, rel=1e-11)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_weights_are_the_integrals_of_lagrange_polynomials(order):
    grid = torch.tensor([40.0, 25, 14, 6, 2.5, 0.9, 0], dtype=torch.float64)
    for i, row in enumerate(LMS(order).plan(EDM(), grid)):
        nodes = grid[max(0, i + 1 - order) : i + 1].flip(0).numpy()
        assert len(row.e) == len(nodes)
        for j, w in enumerate(row.e):
            others = np.delete(nodes, j)
            ell = np.polynomial.Polynomial.fromroots(others) if len(others) else np.polynomial.Polynomial([1.0])
            exact = ell.integ()(grid[i + 1].item()) - ell.integ()(nodes[0])
            assert w == pytest.approx(exact / np.prod(nodes[j] - others), rel=1e-10)


@pytest.mark.parametrize("path", [VP(), RectifiedFlow()], ids=name)
def test_deis_in_lambda_is_the_exact_exponential_multistep(path):
    """E_1 m0 + E_2 D1 (+ E_3 D2) of DPM-Solver in noise form, D2 = h^2 times the second divided difference twice."""
    grid = between(path, 0.9, 0.1, unit(6) ** 1.3)
    lam, m = path.log_snr(grid), normal(3, seed=4)
    two, three = (DEIS(k, "lambda").plan(path, grid)[4] for k in (1, 2))
    h, r0, r1 = lam[5] - lam[4], lam[4] - lam[3], lam[3] - lam[2]
    step = Step(path, grid[4], grid[5], "eps")
    d10, d11 = h * (m[0] - m[1]) / r0, h * (m[1] - m[2]) / r1
    first = step.moment(1) * m[0] + step.moment(2) * d10
    d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
    second = step.moment(1) * m[0] + step.moment(2) * d1 + step.moment(3) * 2 * h * (d10 - d11) / (r0 + r1)
    assert sum(w * v for w, v in zip(two.e, m, strict=False)).item() == pytest.approx(first.item(), rel=1e-12)
    assert sum(w * v for w, v in zip(three.e, m, strict=True)).item() == pytest.approx(second.item(), rel=1e-12)


def test_the_tail_lowers_the_degree_of_the_last_of_few_steps():
    def counts(n):
        return [len(r.e) for r in DEIS(2, "lambda", tail=15).plan(VP(), LogSNR(end=1e-3)(VP(), n))]

    assert counts(7) == [1, 2, 3, 3, 3, 2, 1]
    assert counts(16) == [1, 2, *[3] * 13, 1]  # the last step reaches s = 0, where lambda is infinite


# --- fixed weights ---------------------------------------------------------------------------------------------


def paper(k, b):
    """The weights of arXiv:2307.11118, appendix."""
    return {
        1: [1],
        2: [(2 + b) / (2 * b), -(2 - b) / (2 * b)],
        3: [(18 + 5 * b) / (12 * b), -(24 - 8 * b) / (12 * b), (6 - b) / (12 * b)],
        4: [v / (24 * b) for v in (46 + 9 * b, -(78 - 19 * b), 42 - 5 * b, -(10 - b))],
        5: [v / (720 * b) for v in (1650 + 251 * b, 646 * b - 3420, 2880 - 264 * b, 106 * b - 1380, 270 - 19 * b)],
    }[k]


@pytest.mark.parametrize("beta", [0.2, 0.75, 1.0])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_corrected_adams_bashforth_weights_are_those_of_the_paper(k, beta):
    assert adams_bashforth(k, beta) == pytest.approx(paper(k, beta), rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [HeavyBall, Nesterov, GHVB])
def test_integer_orders_are_adams_bashforth_bit_by_bit(kind, k):
    grid = Uniform()(VP(), 9)
    assert kind(float(k)).plan(VP(), grid) == IPNDM(k).plan(VP(), grid)


def momentum_by_hand(kind, nominal, world, x, path, grid):
    """The loops of the paper, with the velocity as a state."""
    k, beta = math.ceil(nominal), nominal % 1 or 1.0
    eps, vs, v = [], [], None
    for t, s in itertools.pairwise(grid):
        estimate = world(x, t.item())
        eps = [estimate.eps, *eps][:k]
        v = estimate.eps if v is None else v
        if kind is GHVB:
            v = (1 - beta) * v + beta * eps[0]
            vs = [v, *vs][:k]
            u = sum(w * e for w, e in zip(paper(len(vs), beta), vs, strict=True))
        else:
            p = sum(w * e for w, e in zip(paper(len(eps), 1.0), eps, strict=True))
            v = (1 - beta) * v + beta * p
            u = v if kind is HeavyBall else (1 - beta) * v + beta * p
        (a, _, n), (a_next, _, n_next) = path.schedule(t), path.schedule(s)
        if a == 0:
            x = a_next * (estimate.x0) + n_next / n * x
        else:
            x = a_next / a * x + (n_next - a_next * n / a) * u
    return x


@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), DDPM(scaled=True)], ids=name)
@pytest.mark.parametrize("nominal", [0.6, 1.5, 2.3, 3.8, 4.0])
@pytest.mark.parametrize("kind", [HeavyBall, Nesterov, GHVB])
def test_finite_rows_are_the_recursion_with_infinite_memory(kind, nominal, path):
    world, x, grid = correlated(path), normal(5, 3), Uniform()(path, 15)
    ours = sample(world, x, path, kind(nominal), grid)
    torch.testing.assert_close(ours, momentum_by_hand(kind, nominal, world, x, path, grid), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), ResidualShift()], ids=name)
def test_momentum_on_2m_averages_its_bracket(path):
    grid = Uniform()(path, 12)
    world, x, beta, u, before = correlated(path), normal(5, 3), 0.7, None, None
    ours = sample(world, x, path, HeavyBall2M(beta), grid)
    lam = path.log_snr(grid)
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        m = world(x, t.item()).x0
        ratio = (lam[i + 1] - lam[i]) / (lam[i] - lam[i - 1]) if before is not None else torch.tensor(0.0)
        bracket = m if not ratio.isfinite() or ratio == 0 else m + ratio * (m - before) / 2
        u, before = bracket if u is None else (1 - beta) * u + beta * bracket, m
        (a, _, n), (a_next, _, n_next) = path.schedule(t), path.schedule(s)
        x = n_next / n * x + (a_next - a * n_next / n) * u
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_full_weight_of_the_new_bracket_is_2m():
    path, grid = VP(), Uniform()(VP(), 8)
    for a, b in zip(HeavyBall2M(1.0).plan(path, grid), DPMpp2M().plan(path, grid), strict=True):
        assert (a.x[0], *a.e) == pytest.approx((b.x[0], *b.e), rel=1e-12)
    with pytest.raises(ValueError, match="beta"):
        HeavyBall2M(0.0)


def pndm_by_hand(starts, points, world, x, path, grid):
    def transfer(x, t, s, e):
        (a, _, n), (a_next, _, n_next) = path.schedule(t), path.schedule(s)
        return a_next / a * x + (n_next - a_next * n / a) * e

    history = []
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        e1 = world(x, t.item()).eps
        history = [e1, *history][:points]
        if i >= starts:
            e = sum(w * v for w, v in zip(paper(len(history), 1.0), history, strict=True))
        elif starts == 1:
            e = (e1 + world(transfer(x, t, s, e1), s.item()).eps) / 2
        else:
            m = (t + s) / 2
            e2 = world(transfer(x, t, m, e1), m.item()).eps
            e3 = world(transfer(x, t, m, e2), m.item()).eps
            e4 = world(transfer(x, t, s, e3), s.item()).eps
            e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        x = transfer(x, t, s, e)
    return x


@pytest.mark.parametrize(("solver", "starts"), [(PLMS(2), 1), (PLMS(4), 1), (PNDM(), 3)])
@pytest.mark.parametrize("n", [4, 9])
def test_pndm_is_the_loop_of_the_paper(solver, starts, n):
    path = VP()
    world, x, grid = correlated(path), normal(5, 3), Uniform()(path, n)
    ours = sample(world, x, path, solver, grid)
    by_hand = pndm_by_hand(starts, solver.points, world, x, path, grid)
    torch.testing.assert_close(ours, by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", [VP(), RectifiedFlow()], ids=name)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 10])
def test_evaluations(path, n):
    """PLMS n + 1, PNDM n + 9; a starting step at a singular end takes one."""
    grid, out_of_noise = Uniform()(path, n), isinstance(path, RectifiedFlow)
    assert len(PLMS().plan(path, grid)) == n + (n > 1 and not out_of_noise)
    assert len(PNDM().plan(path, grid)) == n + 3 * max(0, min(n - 1, 3) - out_of_noise)
    for solver in (DEIS(3, "t"), LMS(), IPNDM(), GHVB(1.8)):
        assert len(solver.plan(path, grid)) == n
    for solver in (PLMS(), PNDM()):
        assert [r.s for r in solver.plan(path, grid) if r.last] == grid[1:].tolist()


@pytest.mark.parametrize("path", [VP(), RectifiedFlow()], ids=name)
@pytest.mark.parametrize(
    "solver", [DEIS(2, "t"), DEIS(2, "lambda"), LMS(), IPNDM(), GHVB(1.8), Nesterov(1.5), BDIA(0.9)], ids=label
)
def test_a_lone_step_at_per_sample_times_is_ddim(solver, path):
    t, s = torch.tensor([[1.0, 0.7, 0.3, 0.2], [0.6, 0.1, 0.25, 0.0]], dtype=torch.float64)
    x0, eps = normal(4, 2, seed=1), normal(4, 2, seed=2)
    stepped = solver.step(path, path.sample(x0, eps, t), Estimate(x0, eps), t, s)
    torch.testing.assert_close(stepped, path.sample(x0, eps, s), rtol=1e-12, atol=1e-12)


# --- ends, and the folded loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VP(), EDM(), RectifiedFlow(), Trig(), Cosine(), DDPM(), ResidualShift()], ids=name)
@pytest.mark.parametrize("solver", MULTISTEP, ids=label)
def test_one_to_four_steps_from_end_to_end_are_finite(solver, path):
    y = normal(5, 3, seed=1) if path.anchored else None
    world, x = correlated(path, y), path.start(normal(5, 3), y)
    for n in (1, 2, 3, 4):
        assert sample(world, x, path, solver, Uniform()(path, n), y).isfinite().all()


@pytest.mark.parametrize("prediction", [V(), U()], ids=name)
@pytest.mark.parametrize("solver", [DEIS(2, "t"), LMS(), PLMS(), PNDM(), GHVB(2.5), Nesterov(1.5)], ids=label)
def test_the_loop_over_raw_outputs_is_the_loop_over_estimates(solver, prediction):
    path = RectifiedFlow()
    denoiser = Denoiser(torch.nn.Module(), path, prediction)
    denoiser.net.forward = lambda x, t: torch.tanh(x) * t[:, None]
    x, grid = normal(4, 3), Uniform()(path, 8)
    folded, plain = (sample(denoiser.bind(), x, path, solver, grid, callbacks=c) for c in ([], [Callback()]))
    torch.testing.assert_close(folded, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DEIS(-1), "degree >= 0"),
        (lambda: DEIS(1, "sigma"), "sigma"),
        (lambda: LMS(0), "at least 1"),
        (lambda: IPNDM(0), "at least 1"),
        (lambda: PLMS(1), "at least 2"),
        (lambda: GHVB(0.0), "above 0"),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(make, words):
    with pytest.raises(ValueError, match=words) as refused:
        make()
    assert "\n" not in str(refused.value)
