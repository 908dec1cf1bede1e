"""DPM-Solver-v3 and its statistics against closed forms, the exponential multistep, exact worlds and the official vectors."""

import math
from itertools import pairwise

import pytest
import torch
from golden_cases import Golden
from golden_families.dpm_solver_v3 import dpm_solver_v3
from worlds import GOLDEN, correlated, golden, golden_ids, golden_mixture, normal, time_at

from fewstep.artifacts import ArtifactError, build, describe, load, save
from fewstep.denoiser import Denoiser
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.grids import LogSNR, Uniform
from fewstep.nets import MLP
from fewstep.paths import EDM, VP, RectifiedFlow, ResidualShift, Trig
from fewstep.prediction import X0
from fewstep.sampling import sample
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.dpm_v3 import DPMSolverV3
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.ems import EMS, data_form, directional, estimate_ems, load_ems, noise_form, save_ems
from fewstep.solvers.unipc import UniPC
from fewstep.toy import gaussian, ring

INSIDE = {
    "vp": (VP(), 1.0, 0.01),
    "edm": (EDM(), 20.0, 0.05),
    "rf": (RectifiedFlow(), 0.95, 0.05),
    "trig": (Trig(), 1.5, 0.05),
    "resshift": (ResidualShift(), 14.0, 2.0),
}
EACH_PATH = pytest.mark.parametrize(("path", "hi", "lo"), [pytest.param(*v, id=k) for k, v in INSIDE.items()])


def ends(path, hi, lo):
    first, last = path.log_snr(torch.tensor([hi, lo], dtype=torch.float64)).tolist()
    return first, last


def lambda_grid(path, hi, lo, n, grade=1.0):
    first, last = ends(path, hi, lo)
    t = path.time_of_log_snr(first + torch.linspace(0, 1, n + 1, dtype=torch.float64) ** grade * (last - first))
    t[0], t[-1] = hi, lo
    return t


def gaussian_start(path, hi, std=1.8):
    """(world, x at time hi, y) of one Gaussian in two dimensions."""
    y = normal(16, 2, seed=1) if path.anchored else None
    world = gaussian(path, torch.tensor([0.5, -1.0]), std, dim=2, y=y)
    x0 = world.draw(16, torch.Generator().manual_seed(0))
    return world, path.sample(x0, normal(16, 2, seed=2), torch.full((16,), hi, dtype=torch.float64), y), y


def smooth_ems(first, last, n):
    """Statistics of nobody's model: any smooth l, s, b make a consistent solver."""
    lam = torch.linspace(first, last, n + 1, dtype=torch.float64)
    return EMS(
        first, last, *(tuple(v.tolist()) for v in (torch.sigmoid(-lam), -0.7 * torch.tanh(lam), 0.3 * lam.cos()))
    )


def of_gaussian(mean, var, first, last, n):
    """Closed form: x0 = mu + a var (z - mu)/..., so f = -l mu with l = 1/(1 + var e^(2 lambda)), s = 0 and b = -l' mu."""
    lam = torch.linspace(first, last, n + 1, dtype=torch.float64)[:, None]
    l = 1 / (1 + torch.as_tensor(var, dtype=torch.float64) * (2 * lam).exp())
    b = 2 * l * (1 - l) * torch.as_tensor(mean, dtype=torch.float64)
    return EMS(first, last, l.expand_as(b), torch.zeros_like(b), b)


# --- official vectors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", golden_ids("dpm_solver_v3"))
def test_official_samplers_are_reproduced(case_id):
    case = next(c for c in Golden(GOLDEN / "solvers_dev.json").cases() if c["id"] == case_id)
    for _, ours, official in dpm_solver_v3(case):
        torch.testing.assert_close(ours, official, rtol=case["rtol"], atol=case["atol"])


@pytest.mark.parametrize("case_id", golden_ids("dpm_solver_v3"))
def test_times_are_snapped_to_the_official_nodes(case_id):
    case = next(c for c in Golden(GOLDEN / "solvers_dev.json").cases() if c["id"] == case_id)
    path = VP() if case["path"] == "vp_linear" else EDM()
    first, last = ends(path, case["solver"]["t_start"], case["solver"]["t_end"])
    official, n = case.array("indexes"), len(case.array(f"{case['ems']}/l")) - 1
    at, on = data_form(first, last, n).place(path.log_snr(case.array("timesteps")))
    assert torch.equal(at, official.long())
    assert on.all()
    if case["solver"]["skip_type"] == "logSNR":  # some nodes lie half-way
        even = torch.linspace(first, last, case["solver"]["steps"] + 1, dtype=torch.float64)
        assert torch.equal(data_form(first, last, n).place(even)[0], official.long())


# --- identities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(("form", "uses"), [(data_form, "x0"), (noise_form, "eps")])
def test_without_statistics_it_is_the_exponential_multistep(form, uses, p):
    """l = 1 is the data form and l = 0 the noise form with exact weights, up to the quadrature on the nodes: (1/N)^2."""
    path, grid = VP(), lambda_grid(VP(), 1.0, 0.01, 8)
    world, x = correlated(path), normal(6, 3)
    exact = sample(world, x, path, UniPC(p, uses=uses, b="vary", corrector=False, tail=False), grid)
    errors = []
    for n in (1000, 2000):
        v3 = DPMSolverV3(form(*ends(path, 1.0, 0.01), n), p, corrector=False, tail=False)
        errors.append((sample(world, x, path, v3, grid) - exact).abs().max().item())
    assert errors[0] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.1)


def test_its_first_order_corrector_is_unic_1_without_statistics():
    path, grid = EDM(), lambda_grid(EDM(), 20.0, 0.05, 8)
    world, x = correlated(path), 20 * normal(6, 3)
    v3 = DPMSolverV3(data_form(*ends(path, 20.0, 0.05), 8000), 1, c_pseudo=True)
    torch.testing.assert_close(
        sample(world, x, path, v3, grid), sample(world, x, path, UniPC(1, b="vary"), grid), rtol=1e-5, atol=1e-5
    )


@EACH_PATH
@pytest.mark.parametrize("steps", [1, 3])
def test_with_the_statistics_of_a_gaussian_one_step_is_exact(path, hi, lo, steps):
    """f is a function of lambda alone, which b integrates: nothing is left for the network."""
    world, x, y = gaussian_start(path, hi)
    exact, errors = world.flow_map(x, hi, lo), []
    for n in (600, 1200):
        ems = of_gaussian([0.5, -1.0], 1.8**2, *ends(path, hi, lo), n)
        errors.append(
            (sample(world, x, path, DPMSolverV3(ems, 1), lambda_grid(path, hi, lo, steps), y) - exact).abs().max()
        )
    assert errors[0] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.1)
    ddim = sample(world, x, path, DDIM(), lambda_grid(path, hi, lo, steps), y)
    assert (ddim - exact).abs().max() > 1000 * errors[0]


def test_equal_numbers_per_coordinate_are_numbers_per_node():
    path, grid = VP(), lambda_grid(VP(), 1.0, 0.01, 6)
    ems = smooth_ems(*ends(path, 1.0, 0.01), 120)
    wide = EMS(
        ems.first,
        ems.last,
        *(torch.tensor(v, dtype=torch.float64)[:, None].expand(-1, 3) for v in (ems.l, ems.s, ems.b)),
    )
    world, x = correlated(path), normal(6, 3)
    a, b = (sample(world, x, path, DPMSolverV3(e, 3, c_pseudo=True), grid) for e in (ems, wide))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [{"p": 2}, {"p": 3, "p_pseudo": True, "c_pseudo": True}], ids=str)
def test_paths_with_the_same_log_snr_grid_have_the_same_data(solver):
    found, lambdas = [], torch.linspace(-3, 3, 9).tolist()
    v3 = DPMSolverV3(smooth_ems(-3.0, 3.0, 160), **solver)
    for path in (VP(), EDM(), RectifiedFlow(), Trig()):
        grid = torch.tensor([time_at(path, lam) for lam in lambdas], dtype=torch.float64)
        a, _, s = path.schedule(grid)
        found.append(sample(correlated(path), a[0] * 0.3 + s[0] * normal(6, 3), path, v3, grid) / a[-1])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)


def test_shifting_the_anchor_shifts_the_end_by_its_weight():
    path = ResidualShift()
    grid, x, y, c = lambda_grid(path, 14, 2, 6), normal(6, 3), normal(6, 3, seed=1), normal(6, 3, seed=2)
    v3, b = DPMSolverV3(smooth_ems(*ends(path, 14, 2), 120)), path.schedule(grid)[1]
    still = sample(correlated(path, y), x, path, v3, grid, y)
    moved = sample(correlated(path, y + c), x + b[0] * c, path, v3, grid, y + c)
    torch.testing.assert_close(moved, still + b[-1] * c, rtol=1e-10, atol=1e-10)


def test_folding_a_network_changes_nothing():
    """Rows over raw outputs (past states, constants, numbers per coordinate) are the rows over estimates."""
    torch.manual_seed(0)
    path = RectifiedFlow()
    denoise = Denoiser(MLP(3, 16, 2), path, X0()).double().bind()
    ems = smooth_ems(*ends(path, 0.95, 0.05), 120)
    wide = EMS(
        ems.first, ems.last, *(torch.tensor(v)[:, None] * torch.tensor([1.0, 0.5, 0.2]) for v in (ems.l, ems.s, ems.b))
    )
    grid, x = lambda_grid(path, 0.95, 0.05, 6), normal(4, 3)
    with torch.no_grad():
        for e in (ems, wide):
            v3 = DPMSolverV3(e, 3)
            plain = sample(lambda x, t: denoise(x, t), x, path, v3, grid)
            torch.testing.assert_close(sample(denoise, x, path, v3, grid), plain, rtol=1e-10, atol=1e-10)


# --- order -----------------------------------------------------------------------------------------------------


def slope(path, hi, lo, n, grade=1.0, **solver):
    """Measured order between n and 2 n steps, on nodes so many that their quadrature does not show."""
    world, x, y = gaussian_start(path, hi, std=0.6 if path.anchored else 1.8)
    v3 = DPMSolverV3(smooth_ems(*ends(path, hi, lo), 2**12), tail=False, **solver)
    exact = world.flow_map(x, hi, lo)
    errors = [
        (sample(world, x, path, v3, lambda_grid(path, hi, lo, k, grade), y) - exact).abs().max() for k in (n, 2 * n)
    ]
    return v3, math.log2(errors[0] / errors[1])


MEASURED = [
    {"p": 1},
    {"p": 1, "c_pseudo": True},
    {"p": 2},
    {"p": 2, "corrector": False},
    {"p": 2, "p_pseudo": True, "c_pseudo": True},
]


@EACH_PATH
@pytest.mark.parametrize("solver", MEASURED, ids=str)
def test_halving_the_step_shows_the_declared_order(solver, path, hi, lo):
    v3, measured = slope(path, hi, lo, 64, **solver)
    assert measured == pytest.approx(v3.order, abs=0.25)


# --- few steps, singular ends, evaluations ---------------------------------------------------------------------


@pytest.mark.parametrize("solver", [{"p": 1}, {"p": 2}, {"p": 3, "c_pseudo": True, "tail": False}], ids=str)
@pytest.mark.parametrize(
    "path", [VP(), EDM(), RectifiedFlow(), Trig(), ResidualShift()], ids=lambda p: type(p).__name__
)
def test_from_end_to_end_it_is_finite_with_one_evaluation_a_step(path, solver):
    """Beyond the nodes, so out of a = 0 and into s = 0, steps are DDIM's."""
    y, times = normal(5, 3, seed=1), []
    world, x, v3 = correlated(path, y), path.start(normal(5, 3), y), DPMSolverV3(smooth_ems(-3.0, 3.0, 160), **solver)

    def watched(x, t):
        times.append(t)
        return world(x, t)

    for n in (1, 2, 3, 4, 7):
        times.clear()
        grid = Uniform()(path, n)
        assert sample(watched, x, path, v3, grid, y).isfinite().all()
        assert len(times) == n
        assert v3.plan(path, grid)[-1].s == grid[-1].item()
    one = Uniform()(path, 1)
    assert v3.plan(path, one) == DDIM().plan(path, one)


def test_steps_run_between_the_nearest_nodes():
    path, v3 = RectifiedFlow(), DPMSolverV3(data_form(-3.0, 3.0, 60))
    grid = torch.tensor([1.0, 0.9, 0.52, 0.2, 0.0], dtype=torch.float64)
    rows = v3.plan(path, grid)
    at = (path.log_snr(torch.tensor([r.t for r in rows[1:]], dtype=torch.float64)) + 3) * 10
    torch.testing.assert_close(at, at.round(), rtol=0, atol=1e-9)
    torch.testing.assert_close(at, ((path.log_snr(grid[1:4]) + 3) * 10).round(), rtol=0, atol=1e-9)
    assert (rows[0].t, rows[-1].s) == (1.0, 0.0)
    for row, after in pairwise(rows):
        assert row.s == after.t


def test_an_oracle_of_the_data_is_met_exactly():
    path, x0 = RectifiedFlow(), normal(5, 3, seed=3)

    def oracle(x, t):
        return Estimate(x0, (x - (1 - t) * x0) / t)

    end = sample(oracle, normal(5, 3), path, DPMSolverV3(smooth_ems(-3.0, 3.0, 160)), Uniform()(path, 6))
    torch.testing.assert_close(end, x0, rtol=1e-12, atol=1e-12)


def test_what_cannot_be_stepped_is_refused_in_one_line():
    ems = data_form(-3.0, 3.0, 8)
    with pytest.raises(ValueError, match="take fewer steps or more nodes"):
        DPMSolverV3(ems).plan(RectifiedFlow(), Uniform()(RectifiedFlow(), 20))
    with pytest.raises(ValueError, match="p >= 1, got 0"):
        DPMSolverV3(ems, 0)
    with pytest.raises(ValueError, match="per-sample times"):
        DPMSolverV3(ems).step(
            VP(), normal(2, 2), Estimate(normal(2, 2), normal(2, 2)), *torch.tensor([[0.5] * 2, [0.4] * 2])
        )
    with pytest.raises(ValueError, match="2, 2, 1 nodes"):
        EMS(-1.0, 1.0, (1.0, 1.0), (0.0, 0.0), (0.0,))
    with pytest.raises(ValueError, match="finite lambda"):
        estimate_ems(correlated(RectifiedFlow()), RectifiedFlow(), normal(4, 3), 10)


# --- statistics ------------------------------------------------------------------------------------------------


class NoForward(torch.autograd.Function):
    """The identity, without a formula for forward-mode derivatives."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


def differenced(world):
    """The denoiser as networks without forward mode are: its derivatives are central differences, much faster here."""
    return lambda x, t: world(NoForward.apply(x), t)


def test_differences_replace_forward_mode_where_there_is_none():
    world, x, t = correlated(VP()), normal(6, 3), torch.full((6,), 0.4, dtype=torch.float64)
    along = (normal(6, 3, seed=1), normal(6, seed=2))
    exact, rough = (directional(lambda x, t: f(x, t).x0, (x, t), along) for f in (world, differenced(world)))
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(rough, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("probes", [None, 1])
@pytest.mark.parametrize(
    ("path", "hi", "lo"), [INSIDE["vp"], INSIDE["edm"], INSIDE["resshift"]], ids=["vp", "edm", "resshift"]
)
def test_the_estimate_on_a_gaussian_is_its_closed_form(path, hi, lo, probes):
    """The diagonal of a diagonal Jacobian is exact with any probe."""
    mean, std = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.4, 1.8], dtype=torch.float64)
    y = normal(8, 2, seed=1) if path.anchored else None
    world = gaussian(path, mean, std, dim=2, y=y)
    ours = estimate_ems(differenced(world), path, world.draw(8), 20, hi, lo, y, "coordinate", probes, batch=8)
    exact = of_gaussian(mean, std**2, *ends(path, hi, lo), 20)
    for k in ("l", "s", "b"):
        torch.testing.assert_close(getattr(ours, k), getattr(exact, k), rtol=0, atol=2e-6)


def test_the_estimate_does_not_depend_on_path_or_batches():
    """With forward mode."""
    x0, found = correlated(VP()).draw(12, torch.Generator().manual_seed(0)), []
    for path, batch in ((VP(), 12), (VP(), 5), (EDM(), 12)):
        hi, lo = (time_at(path, lam) for lam in (-2.0, 2.0))
        generator = torch.Generator().manual_seed(1)
        found.append(estimate_ems(correlated(path), path, x0, 5, hi, lo, batch=batch, generator=generator))
    for other in found[1:]:
        for k in ("l", "s", "b"):
            torch.testing.assert_close(getattr(other, k), getattr(found[0], k), rtol=1e-6, atol=1e-8)
            assert isinstance(getattr(other, k), tuple)


@pytest.mark.parametrize(
    ("stem", "path", "mixture", "hi", "lo"), [("vp", VP(), "A", 1.0, 1e-3), ("edm", EDM(), "B", 80.0, 0.002)]
)
def test_the_estimate_agrees_with_the_official_statistics(stem, path, mixture, hi, lo):
    """Those are of 128 points: they differ from ours of 128 as ours differ among themselves.

    Their dl/dlambda is by differences: one-sided at the two ends, which are left out, and 2 % off where l falls by exp(-2 lambda).
    """
    world, generator = golden_mixture(mixture, path), torch.Generator().manual_seed(0)
    arrays, _ = golden("solvers_dev")

    def ours():
        x0 = world.draw(128, generator)
        return estimate_ems(differenced(world), path, x0, 30, hi, lo, None, "coordinate", None, generator=generator)

    first, second = ours(), ours()
    for k in ("l", "s", "b"):
        a, b = getattr(first, k)[1:-1], getattr(second, k)[1:-1]
        official = torch.tensor(arrays[f"ems/{stem}/{k}"])[2:-2:2]
        for part in (slice(0, 10), slice(10, 20), slice(20, 29)):
            gap, spread, size = (v[part].square().mean().sqrt() for v in (official - (a + b) / 2, a - b, official))
            assert gap < 1.8 * spread + 0.025 * size + 1e-4


def test_estimated_statistics_beat_dpmpp_2m_at_five_to_ten_evaluations():
    """Distance to the exact ODE solution; on the ring f hardly varies at high noise, and s needs an accurate dl/dlambda."""
    for world, path, hi, lo in ((golden_mixture("A", VP()), VP(), 1.0, 1e-3), (ring(EDM()), EDM(), 80.0, 0.002)):
        generator = torch.Generator().manual_seed(0)
        ems = estimate_ems(differenced(world), path, world.draw(128, generator), 60, hi, lo, generator=generator)
        x0 = world.draw(512, generator)
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        x = path.sample(x0, noise, torch.full((512,), hi, dtype=torch.float64))
        exact = sample(world, x, path, UniPC(3, tail=False), lambda_grid(path, hi, lo, 150))
        for n in (5, 6, 8, 10):
            v3, dpm = (
                (sample(world, x, path, s, lambda_grid(path, hi, lo, n)) - exact).abs().mean()
                for s in (DPMSolverV3(ems), DPMpp2M())
            )
            assert v3 < 0.9 * dpm


def test_statistics_of_a_float32_network():
    torch.manual_seed(0)
    path = RectifiedFlow()
    denoise = Denoiser(MLP(2, 16, 2), path, X0()).bind()
    for ems, shape in (
        (estimate_ems(denoise, path, torch.randn(32, 2), 10, 0.9, 0.1), (11,)),
        (estimate_ems(denoise, path, torch.randn(32, 2), 10, 0.9, 0.1, per="coordinate"), (11, 2)),
    ):
        for v in (ems.l, ems.s, ems.b):
            assert torch.as_tensor(v).shape == shape
            assert torch.as_tensor(v).isfinite().all()


# --- artifacts -------------------------------------------------------------------------------------------------


def test_a_generator_with_numbers_per_node_survives_an_artifact(tmp_path):
    torch.manual_seed(0)
    solver = DPMSolverV3(smooth_ems(-2.5, 2.5, 30), 3, p_pseudo=True, corrector=False, tail=False)
    model = Generator(Denoiser(MLP(2, 16, 2), RectifiedFlow(), X0()), solver, LogSNR(0.9, 0.1), steps=4).eval()
    loaded = load(save(model, tmp_path / "artifact"))
    assert isinstance(loaded, Generator)
    assert loaded.solver == solver == build(describe(solver))
    with torch.no_grad():
        assert torch.equal(loaded(normal(3, 2).float()), model(normal(3, 2).float()))


def test_numbers_per_coordinate_are_kept_in_their_own_file(tmp_path):
    ems = EMS(-1.0, 1.0, *(normal(5, 3, 2, seed=k) for k in range(3)))
    save_ems(ems, tmp_path / "ems.safetensors")
    loaded = load_ems(tmp_path / "ems.safetensors")
    assert (loaded.first, loaded.last) == (-1.0, 1.0)
    for k in ("l", "s", "b"):
        assert torch.equal(getattr(loaded, k), getattr(ems, k))
    with pytest.raises(ArtifactError):
        describe(DPMSolverV3(ems))
    numbers = smooth_ems(-1.0, 1.0, 4)
    save_ems(numbers, tmp_path / "numbers.safetensors")
    assert load_ems(tmp_path / "numbers.safetensors") == numbers


def test_another_file_is_no_statistics(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": normal(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds no EMS"):
        load_ems(tmp_path / "model.safetensors")
