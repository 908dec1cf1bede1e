"""diffusers both ways: its schedulers read from their configuration, our solvers in its pipelines, its networks as
denoisers.

diffusers takes seconds to import, so it is imported where it is used.
"""

import inspect
import json
import math
import re
from pathlib import Path as FilePath

import pytest
import torch
from worlds import GOLDEN, normal

from fewstep.artifacts import build, describe, load, save
from fewstep.denoiser import Denoiser
from fewstep.grids import Explicit, Karras, Uniform
from fewstep.guidance import CFG
from fewstep.integrations.diffusers_config import read
from fewstep.integrations.diffusers_grids import FlowSpacing, IndexSpacing, SigmaSpacing, beta_quantile
from fewstep.integrations.diffusers_labels import Labelled, NegatedEDM
from fewstep.integrations.diffusers_table import BarBetas, LastBar, SigmaTable, SigmoidBetas
from fewstep.integrations.diffusers_threshold import BoundedThreshold
from fewstep.paths import EDM, VP, RectifiedFlow, ResidualShift
from fewstep.paths.betas import LinearBetas, ScaledLinearBetas, ZeroTerminalSNR
from fewstep.paths.tabulated import IndexedVP
from fewstep.precondition import EDMPrecondition
from fewstep.prediction import Eps, U, V
from fewstep.sampling import sample
from fewstep.solvers import DDIM, Ancestral, DPMpp2M, Heun
from fewstep.solvers.churn import Churn
from fewstep.solvers.deis import DEIS
from fewstep.solvers.dpm_singlestep import DPMSinglestep
from fewstep.solvers.pndm import PLMS, PNDM
from fewstep.solvers.unipc import UniPC

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def diffusers():
    module = pytest.importorskip("diffusers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


def ours(*args, **kwargs):
    from fewstep.integrations.diffusers_scheduler import FewstepScheduler

    return FewstepScheduler(*args, **kwargs)


def from_diffusers(*args, **kwargs):
    from fewstep.integrations.diffusers_scheduler import FewstepScheduler

    return FewstepScheduler.from_diffusers(*args, **kwargs)


def kind(solver):
    return "own" if solver is None else type(solver).__name__


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(x, label):
    """A smooth network that depends on its label."""
    mix = torch.randn(4, 4, generator=seeded(3)).to(x) * 0.7
    return torch.tanh(torch.einsum("bchw,cd->bdhw", x, mix) * 1.3 + 0.3) + 0.3 * x * math.cos(float(label) / 300)


def drive(scheduler, x, first=0, seed=0):
    """What a pipeline does with a scheduler whose timesteps are set: from x at entry `first`."""
    more = {"generator": seeded(seed)} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps[first:]:
        out = network(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
        x = scheduler.step(out, t, x, return_dict=False, **more)[0]
    return x


def noise(shape=(3, 4, 2, 2), seed=1):
    return torch.randn(shape, generator=seeded(seed))


# --- configurations ---------------------------------------------------------------------------------------------

DPM, UNIPC, DEISM = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CONFIGURATIONS = [
    ("DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIMScheduler", {**SD, "clip_sample": False, "timestep_spacing": "linspace", "prediction_type": "sample"}),
    (
        "DDIMScheduler",
        {
            **SD,
            "clip_sample": False,
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
    ),
    ("DDPMScheduler", {}),
    ("DDPMScheduler", {"beta_schedule": "sigmoid", "variance_type": "fixed_large", "clip_sample": False}),
    ("DDPMScheduler", {"beta_schedule": "laplace", "thresholding": True, "sample_max_value": 2.0}),
    ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "steps_offset": 1}),
    ("DDPMScheduler", {"trained_betas": [0.01 * (k + 1) for k in range(40)], "num_train_timesteps": 40}),
    ("PNDMScheduler", {**SD, "skip_prk_steps": True, "steps_offset": 1}),
    ("PNDMScheduler", {**SD, "skip_prk_steps": False, "prediction_type": "v_prediction"}),
    ("PNDMScheduler", {**SD, "skip_prk_steps": True, "timestep_spacing": "linspace", "set_alpha_to_one": True}),
    ("LCMScheduler", {}),
    ("LCMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": True}),
    ("TCDScheduler", {}),
    ("EulerDiscreteScheduler", {**SD, "timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {**SD, "use_beta_sigmas": True, "final_sigmas_type": "sigma_min"}),
    (
        "EulerDiscreteScheduler",
        {
            **SD,
            "use_karras_sigmas": True,
            "sigma_min": 0.002,
            "sigma_max": 700.0,
            "timestep_type": "continuous",
            "prediction_type": "v_prediction",
        },
    ),
    ("EulerAncestralDiscreteScheduler", {**SD, "timestep_spacing": "trailing"}),
    ("HeunDiscreteScheduler", {**SD, "use_exponential_sigmas": True}),
    ("HeunDiscreteScheduler", {"beta_schedule": "exp", "clip_sample": True}),
    ("LMSDiscreteScheduler", {**SD, "prediction_type": "v_prediction"}),
    ("KDPM2DiscreteScheduler", {**SD, "use_beta_sigmas": True, "num_train_timesteps": 100}),
    ("KDPM2AncestralDiscreteScheduler", {**SD, "num_train_timesteps": 100}),
    (DPM, {**SD, "solver_order": 3, "use_karras_sigmas": True}),
    (DPM, {**SD, "solver_order": 3, "lower_order_final": False, "solver_type": "heun"}),
    (DPM, {**SD, "solver_order": 2, "algorithm_type": "sde-dpmsolver++", "use_lu_lambdas": True}),
    (DPM, {**SD, "solver_order": 3, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    (DPM, {**SD, "solver_order": 3, "euler_at_final": True, "final_sigmas_type": "sigma_min"}),
    (DPM, {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "timestep_spacing": "leading"}),
    (DPM, {**SD, "prediction_type": "sample", "thresholding": True, "sample_max_value": 1.5}),
    (
        DPM,
        {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    (DPM, {**SD, **FLOW, "flow_shift": 5.0}),
    (UNIPC, {**SD, "solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    (UNIPC, {**SD, "solver_order": 2, "use_karras_sigmas": True}),
    (UNIPC, {**SD, "solver_order": 3, "predict_x0": False, "final_sigmas_type": "sigma_min"}),
    (UNIPC, {**SD, **FLOW, "flow_shift": 3.0, "shift_terminal": 0.1, "final_sigmas_type": "sigma_min"}),
    (UNIPC, {**SD, **FLOW, "use_karras_sigmas": True}),
    (DEISM, {**SD, "solver_order": 3}),
    (DEISM, {**SD, "use_karras_sigmas": True}),
    (DEISM, {**SD, **FLOW, "flow_shift": 3.0}),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential", "final_sigmas_type": "sigma_min"}),
    ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}),
    ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_max": 120.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.02}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True, "use_karras_sigmas": True}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
]


@pytest.mark.parametrize(
    ("name", "config", "steps"),
    # The DPM-Solver family treats the last steps of short grids in another way.
    [
        pytest.param(n, c, steps, id=f"{n}-{k}-{steps}")
        for k, (n, c) in enumerate(CONFIGURATIONS)
        for steps in ((7, 20) if n in (DPM, UNIPC, DEISM) else (7,))
    ],
)
def test_a_scheduler_read_from_its_configuration_samples_as_diffusers_does(diffusers, name, config, steps):
    theirs, read_back = getattr(diffusers, name)(**config), from_diffusers({"_class_name": name, **config})
    assert_alike(theirs, read_back, {"num_inference_steps": steps})


@pytest.mark.parametrize(
    ("name", "config", "arguments"),
    [
        ("EulerDiscreteScheduler", SD, {"timesteps": [999.0, 700.0, 300.0, 10.0]}),
        ("EulerDiscreteScheduler", SD, {"sigmas": [14.0, 5.0, 1.0, 0.2, 0.0]}),
        (DPM, SD, {"timesteps": [999, 700, 300, 10]}),
        ("LCMScheduler", {}, {"timesteps": [999, 699, 299, 19]}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {"sigmas": [1.0, 0.75, 0.5, 0.25]}),
        (
            "FlowMatchEulerDiscreteScheduler",
            {"use_dynamic_shifting": True, "time_shift_type": "linear"},
            {"num_inference_steps": 5, "mu": 0.8},
        ),
        (
            "FlowMatchEulerDiscreteScheduler",
            {"use_dynamic_shifting": True},
            {"sigmas": [1.0, 0.75, 0.5, 0.25], "mu": 0.8},
        ),
        (DPM, {**FLOW, "use_dynamic_shifting": True}, {"num_inference_steps": 5, "mu": 0.8}),
    ],
)
def test_set_timesteps_takes_what_diffusers_takes(diffusers, name, config, arguments):
    assert_alike(getattr(diffusers, name)(**config), from_diffusers({"_class_name": name, **config}), arguments)


def assert_alike(theirs, read_back, arguments):
    theirs.set_timesteps(**arguments)
    read_back.set_timesteps(**arguments)
    assert len(read_back.timesteps) == len(theirs.timesteps)
    a = read_back.path.schedule(read_back.times[[0, -1]])[0]
    scale = 1 / a if edm_scale(theirs) else torch.ones(2)  # their state over ours, at the start and at the end
    start = theirs.init_noise_sigma if hasattr(theirs, "init_noise_sigma") else 1.0
    assert read_back.init_noise_sigma * scale[0].item() == pytest.approx(float(start), rel=1e-4)
    x = noise()
    a, b = drive(theirs, x * start), drive(read_back, x * read_back.init_noise_sigma) * scale[1].float()
    # diffusers keeps its levels in float32, and may cut a label that lies on an integer one lower.
    assert (theirs.timesteps - read_back.timesteps).abs().max() <= (
        1 if theirs.timesteps.dtype == torch.int64 else 0.01
    )
    torch.testing.assert_close(b, a.float(), rtol=4e-4, atol=4e-4)


def edm_scale(scheduler):
    return read(scheduler).scale == "edm"


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("RePaintScheduler", {}, "RePaintScheduler cannot be read"),
        ("DDPMScheduler", {"beta_schedule": "cubic"}, "cubic"),
        ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "fixed_large_log"),
        ("DDIMScheduler", {"prediction_type": "flow_prediction"}, "flow_prediction"),
        ("DDIMScheduler", {"timestep_spacing": "even"}, "even"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas"),
        (UNIPC, {"disable_corrector": [0]}, "disable_corrector"),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "log_linear"),
    ],
)
def test_what_has_no_equivalent_is_refused_by_name(diffusers, name, config, said):
    with pytest.raises(ValueError, match=said) as caught:
        read({"_class_name": name, **config})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "config"), CONFIGURATIONS[::4])
def test_what_is_read_describes_itself_as_json(diffusers, name, config):
    found = read({"_class_name": name, **config})
    for part in (found.path, found.prediction, found.grid, found.solver, found.clip):
        assert build(json.loads(json.dumps(describe(part)))) == part


@pytest.mark.skipif(not (GOLDEN / "solvers_dev.json").is_file(), reason="no golden vectors")
def test_the_golden_family(diffusers):
    from golden_cases import Golden, error

    cases = [c for c in Golden(GOLDEN / "solvers_dev.json").cases() if c["family"] == "diffusers"]
    assert len(cases) == 25
    assert {c["id"]: e for c in cases if (e := error(c)) > 1} == {}


# --- parts ------------------------------------------------------------------------------------------------------


def test_beta_quantiles_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    u = torch.linspace(0, 1, 41, dtype=torch.float64)
    torch.testing.assert_close(beta_quantile(u, 0.6), torch.tensor(stats.beta.ppf(u, 0.6, 0.6)), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("between", ["sigma", "log_sigma"])
@pytest.mark.parametrize(
    "table", [ScaledLinearBetas(50), SigmoidBetas(50), BarBetas(50), LastBar(ZeroTerminalSNR(LinearBetas(50)))]
)
def test_a_sigma_table_is_linear_between_its_knots_and_inverts(table, between):
    path = SigmaTable(table, between)
    knots = IndexedVP(table).schedule(torch.arange(50, dtype=torch.float64))
    a, _, s = path.schedule(torch.arange(50, dtype=torch.float64))
    torch.testing.assert_close((a, s), (knots[0], knots[2]), rtol=1e-9, atol=1e-12)
    t = torch.tensor([-0.6, 3.3, 20.5, 48.9], dtype=torch.float64)
    torch.testing.assert_close(path.time_of_log_snr(path.log_snr(t)), t, rtol=1e-9, atol=1e-9)
    lam = -path.log_snr(torch.tensor([7.0, 7.5, 8.0], dtype=torch.float64))
    levels = lam if between == "log_sigma" else lam.exp()
    torch.testing.assert_close(levels[1], (levels[0] + levels[2]) / 2)


def test_the_clean_end_of_a_sigma_table_has_no_noise():
    a, _, s = SigmaTable(LinearBetas()).schedule(torch.tensor([-1.0], dtype=torch.float64))
    assert (a.item(), s.item()) == (1.0, 0.0)


def test_labels_are_scaled_clamped_and_rounded():
    path, t = RectifiedFlow(), torch.tensor([0.0, 0.2509, 0.9996], dtype=torch.float64)
    c = path.coeffs(t, t)
    assert Labelled(U(), 1000.0, "down").label(t, c).tolist() == [0, 250, 999]
    assert Labelled(U(), 1000.0, "nearest", 3.0, 998.0).label(t, c).tolist() == [3, 251, 998]
    assert Labelled(Eps(), 1000.0).time(torch.tensor(250.0)).item() == 0.25


def test_negated_edm_with_unit_data_is_v_of_the_variance_preserving_process():
    path, t = VP(), torch.tensor([0.2, 0.7], dtype=torch.float64)
    c, x0, eps = path.coeffs(t, normal(2, 3)), normal(2, 3, seed=1), normal(2, 3, seed=2)
    torch.testing.assert_close(NegatedEDM(1.0).target(x0, eps, c), V().target(x0, eps, c))
    torch.testing.assert_close(NegatedEDM(0.5).target(x0, eps, c), -EDMPrecondition(0.5).target(x0, eps, c))
    k, x = NegatedEDM(0.7).affine(c), c.a * x0 + c.s * eps
    out = NegatedEDM(0.7).target(x0, eps, c)
    torch.testing.assert_close((k.x0_x * x + k.x0_out * out, k.eps_x * x + k.eps_out * out), (x0, eps))


def test_a_bounded_threshold_divides_by_a_quantile_kept_in_its_bounds():
    x0 = torch.tensor([[0.1, -0.4, 0.2], [3.0, 1.0, -9.0]])
    assert torch.equal(BoundedThreshold(1.0, 4.0)(x0), torch.stack([x0[0], torch.tensor([0.75, 0.25, -1.0])]))
    assert torch.equal(BoundedThreshold(1.0, 1.0)(x0), x0.clamp(-1, 1))


@pytest.mark.parametrize("grid", [IndexSpacing(), SigmaSpacing(high=14.0, low=0.03), FlowSpacing()])
def test_grids_refuse_no_steps(grid):
    path = RectifiedFlow() if isinstance(grid, FlowSpacing) else IndexedVP(LinearBetas())
    with pytest.raises(ValueError, match="step"):
        grid(path, 0)


# --- the scheduler ----------------------------------------------------------------------------------------------

STATELESS = [
    (EDM(), EDMPrecondition(0.5), Karras()),
    (RectifiedFlow(), Labelled(U(), 1000.0), Uniform(0.02)),
    (IndexedVP(ScaledLinearBetas()), V(), IndexSpacing("trailing")),
]
SOLVERS = [
    DDIM(),
    DPMpp2M(),
    Heun(),
    UniPC(3),
    DEIS(2, "lambda"),
    DPMSinglestep(3),
    PLMS(),
    PNDM(),
    Ancestral(),
    Churn(s_max=1.0),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=kind)
@pytest.mark.parametrize(("path", "prediction", "grid"), STATELESS, ids=["edm", "flow", "table"])
def test_stepping_is_sampling(diffusers, solver, path, prediction, grid):
    """Whatever the solver, the scheduler in a pipeline's loop ends where sample() ends, with the same noise."""
    scheduler = ours(path, prediction, solver, grid)
    scheduler.set_timesteps(6)
    x = normal(2, 4, 2, 2) * scheduler.init_noise_sigma
    denoise = Denoiser(Net(), path, prediction).bind()
    end = sample(denoise, x, path, solver, grid(path, 6), generator=seeded())
    torch.testing.assert_close(drive(scheduler, x), end, rtol=1e-9, atol=1e-9)


class Net(torch.nn.Module):
    """`network` at the label of the first sample, which pipelines know in float32."""

    def forward(self, x, label):
        return network(x, label[0].float())


def test_noise_ahead_of_the_first_evaluation_is_part_of_the_initial_noise(diffusers):
    path, solver, grid = EDM(200.0), Churn(s_churn=40.0, s_noise=1.2, s_max=100.0), Explicit((80.0, 8.0, 2.0, 0.5, 0.0))
    scheduler = ours(path, EDMPrecondition(), solver, grid)
    scheduler.set_timesteps(4)
    first, second = solver.plan(path, grid(path, 4))[:2]
    assert first.e == () and first.noise > 0
    assert scheduler.init_noise_sigma == pytest.approx(math.hypot(80.0 * first.x[0], first.noise))
    assert scheduler.sigmas[0].item() == pytest.approx(second.t)
    assert len(scheduler.timesteps) == 7


def test_the_predicted_x0_is_that_of_the_denoiser(diffusers):
    path, prediction, x = EDM(), EDMPrecondition(), normal(2, 4, 2, 2) * 80
    scheduler = ours(path, prediction, DPMpp2M(), Karras())
    scheduler.set_timesteps(4)
    out = network(scheduler.scale_model_input(x, scheduler.timesteps[0]), scheduler.timesteps[0])
    result = scheduler.step(out, scheduler.timesteps[0], x)
    expected = Denoiser(Net(), path, prediction).bind()(x, 80.0).x0
    torch.testing.assert_close(result.pred_original_sample, expected, rtol=1e-7, atol=1e-7)
    assert result[0] is result.prev_sample
    assert torch.equal(result["pred_original_sample"], result[1])


def test_labels_and_order_follow_the_evaluations(diffusers):
    scheduler = ours(EDM(), Eps(), Heun(), Explicit((4.0, 2.0, 1.0, 0.0)))
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [4, 2, 2, 1, 1]
    assert scheduler.order == 2
    assert scheduler.num_inference_steps == 3
    assert scheduler.sigmas.tolist() == [4, 2, 2, 1, 1, 0]
    assert (scheduler.index_for_timestep(2.0), scheduler.index_for_timestep(4.0)) == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_computed_in_float32(diffusers, dtype):
    scheduler = ours(RectifiedFlow(), Labelled(U(), 1000.0), UniPC(2), Uniform())
    scheduler.set_timesteps(8)
    x, exact = noise().to(dtype), noise().to(dtype).double()
    rounding = torch.finfo(dtype).eps
    end = drive(scheduler, x)
    scheduler.set_timesteps(8)
    assert end.dtype == dtype
    assert (end.double() - drive(scheduler, exact)).abs().max() < 30 * rounding


def test_noise_follows_the_generator(diffusers):
    scheduler = ours(EDM(), EDMPrecondition(), Ancestral(), Karras())

    def run(seed):
        scheduler.set_timesteps(4)
        return drive(scheduler, noise() * scheduler.init_noise_sigma, seed=seed)

    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2))


def test_a_list_of_generators_makes_samples_independent_of_their_batch(diffusers):
    scheduler = ours(EDM(), EDMPrecondition(), Ancestral(), Karras())

    def run(x, seeds):
        scheduler.set_timesteps(4)
        generators = [seeded(s) for s in seeds]
        for t in scheduler.timesteps:
            out = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(out, t, x, generator=generators).prev_sample
        return x

    x = noise() * 80
    torch.testing.assert_close(run(x, [1, 2, 3])[1:2], run(x[1:2], [2]), rtol=1e-5, atol=1e-5)


# --- beginning in the middle ------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M(), UniPC(2), Heun(), DPMSinglestep(2), DEIS(2, "rho")], ids=kind)
def test_image_to_image_samples_the_rest_of_the_grid(diffusers, solver):
    """After `set_begin_index` sampling is that of a grid which begins there."""
    path, prediction, grid = EDM(), EDMPrecondition(), Karras()
    scheduler = ours(path, prediction, solver, grid)
    scheduler.set_timesteps(6)
    first, times = 3 * scheduler.order, grid(path, 6)
    scheduler.set_begin_index(first)
    image, eps = normal(2, 4, 2, 2), normal(2, 4, 2, 2, seed=1)
    x = scheduler.add_noise(image, eps, scheduler.timesteps[first : first + 1])
    torch.testing.assert_close(x, path.sample(image, eps, times[3:4]))
    end = sample(Denoiser(Net(), path, prediction).bind(), x, path, solver, times[3:])
    torch.testing.assert_close(drive(scheduler, x, first), end, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("config", [{}, {"solver_order": 3}, {"solver_order": 3, "use_karras_sigmas": True}])
@pytest.mark.parametrize("name", [DPM, DEISM])
def test_image_to_image_is_that_of_diffusers(diffusers, name, config):
    theirs = getattr(diffusers, name)(**SD, **config)
    read_back, ends = from_diffusers(theirs), []
    for scheduler in (theirs, read_back):
        scheduler.set_timesteps(20)
        scheduler.set_begin_index(11)
        x = scheduler.add_noise(noise(), noise(seed=2), scheduler.timesteps[11:12])
        ends.append(drive(scheduler, x, 11))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-4)


def test_the_first_label_decides_the_beginning_where_no_index_is_given(diffusers):
    ends = []
    for index in (None, 4):
        scheduler = ours(EDM(), EDMPrecondition(), DPMpp2M(), Karras())
        scheduler.set_timesteps(6)
        if index is not None:
            scheduler.set_begin_index(index)
        x = scheduler.add_noise(noise(), noise(seed=2), scheduler.timesteps[4:5])
        assert (scheduler.begin_index, scheduler.step_index) == (index, None)
        ends.append(drive(scheduler, x, 4))
        assert scheduler.step_index == 6
    assert torch.equal(*ends)


def test_a_beginning_inside_a_step_finishes_it_to_first_order(diffusers):
    scheduler = ours(EDM(), EDMPrecondition(), Heun(), Explicit((4.0, 2.0, 1.0, 0.5)))
    scheduler.set_timesteps(3)
    scheduler.set_begin_index(3)  # the corrector of the second step, evaluated at its end
    x, denoise = normal(2, 4, 2, 2), Denoiser(Net(), EDM(), EDMPrecondition()).bind()
    end = sample(denoise, x, EDM(), Heun(), torch.tensor([1.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(drive(scheduler, x, 3), end, rtol=1e-8, atol=1e-8)


def test_a_start_of_many_evaluations_cannot_be_in_the_middle(diffusers):
    scheduler = ours(EDM(), EDMPrecondition(), PNDM(), Karras())
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(13)
    with pytest.raises(ValueError, match="cannot begin at call 13"):
        scheduler.scale_model_input(noise(), scheduler.timesteps[13])


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_noising_is_that_of_diffusers(diffusers, name):
    theirs = getattr(diffusers, name)()
    read_back = from_diffusers(theirs)
    for scheduler in (theirs, read_back):
        scheduler.set_timesteps(10)
    labels = theirs.timesteps[[2, 5, 9]]
    noised = [
        s.scale_noise(noise(), labels, noise(seed=2)) if "Flow" in name else s.add_noise(noise(), noise(seed=2), labels)
        for s in (theirs, read_back)
    ]
    times = torch.tensor([read_back.calls.calls[k].row.t for k in (2, 5, 9)], dtype=torch.float64)
    a = read_back.path.schedule(times)[0] if edm_scale(theirs) else torch.ones(3)
    torch.testing.assert_close(noised[1], noised[0] * a[:, None, None, None].float(), rtol=1e-5, atol=1e-5)


def test_noising_before_any_plan_takes_labels_as_times(diffusers):
    """As training loops do."""
    scheduler = from_diffusers({"_class_name": "DDPMScheduler"})
    theirs = diffusers.DDPMScheduler()
    t = torch.tensor([0, 417, 999])
    torch.testing.assert_close(
        scheduler.add_noise(noise(), noise(seed=2), t), theirs.add_noise(noise(), noise(seed=2), t)
    )
    assert len(scheduler) == 1000


# --- saving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [UniPC(3), Churn(), DPMSinglestep(2, nodes=(0.4,))], ids=kind)
def test_a_scheduler_is_saved_and_loaded(diffusers, tmp_path, solver):
    from fewstep.integrations.diffusers_scheduler import FewstepScheduler

    scheduler = from_diffusers({"_class_name": "EulerDiscreteScheduler", **SD, "use_karras_sigmas": True}, solver)
    scheduler.save_pretrained(tmp_path)
    again = FewstepScheduler.from_pretrained(tmp_path)
    for other in (again, FewstepScheduler.from_config(scheduler.config)):
        for part in ("path", "prediction", "solver", "grid", "clip", "init_noise_sigma"):
            assert getattr(other, part) == getattr(scheduler, part)
        assert other.config["use_karras_sigmas"] is True
    for s in (scheduler, again):
        s.set_timesteps(4)
    assert torch.equal(drive(scheduler, noise()), drive(again, noise()))


def test_settings_of_the_replaced_scheduler_stay_where_pipelines_look(diffusers):
    config = from_diffusers(diffusers.FlowMatchEulerDiscreteScheduler(base_shift=0.6)).config
    assert (config.base_shift, config.num_train_timesteps, config.get("max_shift")) == (0.6, 1000, 1.15)


def test_a_scheduler_of_ours_takes_another_solver(diffusers):
    first = from_diffusers({"_class_name": "DDPMScheduler", "clip_sample": False}, DPMpp2M())
    second = from_diffusers(first, grid=IndexSpacing("trailing"))
    assert (second.solver, second.grid) == (DPMpp2M(), IndexSpacing("trailing"))
    assert (second.path, second.clip, second.config["clip_sample"]) == (first.path, None, False)


def test_flow_pipelines_even_sigmas_mean_a_number_of_steps_to_other_grids(diffusers):
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler, own = from_diffusers(flow, grid=Uniform()), from_diffusers(flow)
    even = torch.linspace(1, 0.25, 4).tolist()
    for s in (scheduler, own):
        s.set_timesteps(sigmas=even, mu=0.5)
    assert scheduler.timesteps.tolist() == [1000, 750, 500, 250]
    assert own.timesteps.tolist() == pytest.approx([1000, 900, 750, 500])
    scheduler.set_timesteps(sigmas=[1.0, 0.6])
    assert scheduler.timesteps.tolist() == pytest.approx([1000, 600])


def test_misuse_is_said_in_one_line(diffusers):
    with pytest.raises(ValueError, match="anchor"):
        ours(ResidualShift(), Eps(), DDIM(), Uniform())
    with pytest.raises(ValueError, match="expected a Solver"):
        ours(EDM(), Eps(), Uniform(), DDIM())
    scheduler = ours(EDM(), Eps(), DDIM(), Karras())
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.scale_model_input(noise(), 1.0)
    with pytest.raises(ValueError, match="not both"):
        scheduler.set_timesteps(timesteps=[3.0, 1.0], sigmas=[3.0, 1.0])
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match=r"Ancestral\(0.5\)"):
        scheduler.step(noise(), scheduler.timesteps[0], noise(), eta=0.5)
    with pytest.raises(ValueError, match="not one of scheduler.timesteps"):
        scheduler.scale_model_input(noise(), 17.5)
    clipped = from_diffusers({"_class_name": "DDPMScheduler"})
    clipped.set_timesteps(3)
    with pytest.raises(ValueError, match="use_clipped_model_output"):
        clipped.step(noise(), clipped.timesteps[0], noise(), use_clipped_model_output=False)


# --- pipelines --------------------------------------------------------------------------------------------------


def unet(diffusers, **more):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **more,
    ).eval()


def conditional_unet(diffusers, **more):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        **more,
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def sd3(diffusers):
    torch.manual_seed(0)
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
    ).eval()


def autoencoder(diffusers, channels=4):
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(4,),
        latent_channels=channels,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        shift_factor=0.0,
    ).eval()


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("solver", [DPMpp2M(), Ancestral(), Heun()], ids=kind)
def test_ddpm_pipeline(diffusers, solver):
    """DDPMPipeline with our scheduler against our loop on its network."""
    theirs = diffusers.DDPMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
    pipe = diffusers.DDPMPipeline(unet(diffusers), theirs)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = from_diffusers(theirs, solver)
    images = pipe(batch_size=2, num_inference_steps=5, output_type="pt", generator=seeded()).images
    denoiser, found, generator = Denoiser.from_diffusers(pipe), read(theirs), seeded()
    x = torch.randn(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        end = sample(denoiser.bind(), x, found.path, solver, found.times(5), generator=generator)
    assert 0.1 < images.std() < 1
    torch.testing.assert_close(images, (end / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_ddim_pipeline_and_its_own_scheduler(diffusers):
    pipe = diffusers.DDIMPipeline(unet(diffusers), diffusers.DDIMScheduler(prediction_type="sample", clip_sample=False))
    pipe.set_progress_bar_config(disable=True)

    def run():
        return pipe(batch_size=2, num_inference_steps=5, output_type="pt", generator=seeded()).images

    images = run()
    pipe.scheduler = from_diffusers(pipe.scheduler)
    torch.testing.assert_close(run(), images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", [DPMpp2M(), UniPC(2)], ids=kind)
def test_guided_transformer_pipeline(diffusers, solver):
    """DiTPipeline: class labels, classifier-free guidance, and a network that also predicts variances."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        in_channels=4,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        patch_size=4,
    )
    torch.nn.init.normal_(transformer.proj_out_2.weight, std=0.3)
    theirs = diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    pipe = diffusers.DiTPipeline(transformer.eval(), autoencoder(diffusers), from_diffusers(theirs, solver))
    pipe.set_progress_bar_config(disable=True)
    images = pipe([3, 7], guidance_scale=2.5, num_inference_steps=5, output_type="pt", generator=seeded()).images
    found, x = read(theirs), torch.randn(2, 4, 8, 8, generator=seeded())
    guided = CFG(Denoiser.from_diffusers(pipe), 2.5, {"class_labels": torch.tensor([1000])})
    with torch.no_grad():
        end = sample(guided.bind({"class_labels": torch.tensor([3, 7])}), x, found.path, solver, found.times(5))
        expected = (pipe.vae.decode(end / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert images.std() > 0.05
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)


def loop(pipe, x, steps, cond=None, uncond=None, cfg=1.0):
    """The sampling loop that diffusers' pipelines share, on a network and a scheduler; x is standard normal."""
    model, scheduler = pipe
    scheduler.set_timesteps(steps)
    x, generator = x * getattr(scheduler, "init_noise_sigma", 1.0), seeded()
    more = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    state = next(iter(inspect.signature(model.forward).parameters))
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x

        def call(given):
            return model(**{state: seen}, timestep=t.expand(len(x)), **(given or {}), return_dict=False)[0]

        out = call(cond)
        if cfg != 1.0:
            free = call(uncond)
            out = free + cfg * (out - free)
        x = scheduler.step(out, t, x, **more, return_dict=False)[0]
    return x


def prompts(seed, pooled=False):
    more = {"pooled_projections": torch.randn(2, 10, generator=seeded(seed + 1))} if pooled else {}
    return {"encoder_hidden_states": torch.randn(2, 5, 12, generator=seeded(seed)), **more}


CONDITIONAL = [
    ("DDIMScheduler", {**SD, "clip_sample": False, "steps_offset": 1}, conditional_unet, False),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, sd3, True),
    ("EulerDiscreteScheduler", {**SD, "use_karras_sigmas": True}, conditional_unet, False),
]


@pytest.mark.parametrize("solver", [None, UniPC(2), Ancestral()], ids=kind)
@pytest.mark.parametrize(
    ("name", "config", "make", "pooled"), CONDITIONAL, ids=["unet-ddim", "sd3-flow", "unet-karras"]
)
def test_guided_loops(diffusers, name, config, make, pooled, solver):
    """Conditional U-Net and flow transformer under guidance: loop + scheduler, sample(), and diffusers' own
    scheduler.
    """
    model, theirs = make(diffusers), getattr(diffusers, name)(**config)
    cond, uncond, x = prompts(1, pooled), prompts(5, pooled), noise((2, 4, 8, 8))
    scheduler = from_diffusers(theirs, solver)
    guided = CFG(Denoiser.from_diffusers(model, theirs), 3.0, {k: v[:1] for k, v in uncond.items()})
    uncond = {k: v[:1].expand_as(v) for k, v in uncond.items()}
    with torch.no_grad():
        end = loop((model, scheduler), x, 6, cond, uncond, 3.0)
        path, times = scheduler.path, scheduler.times
        own = sample(
            guided.bind(cond), x * scheduler.init_noise_sigma, path, scheduler.solver, times, generator=seeded()
        )
        assert relative(end, own) < 1e-5
        if solver is None:
            official = loop((model, theirs), x, 6, cond, uncond, 3.0)
            assert relative(end, official * (path.schedule(times[-1])[0].item() if edm_scale(theirs) else 1)) < 1e-4


@pytest.mark.parametrize("solver", [None, Heun(), DPMpp2M()], ids=kind)
def test_edm_loops(diffusers, solver):
    model, theirs = unet(diffusers), diffusers.EDMEulerScheduler()
    scheduler, x = from_diffusers(theirs, solver), noise((2, 3, 8, 8))
    with torch.no_grad():
        end = loop((model, scheduler), x, 6)
        denoise = Denoiser.from_diffusers(model, theirs).bind()
        own = sample(denoise, x * scheduler.init_noise_sigma, scheduler.path, scheduler.solver, scheduler.times)
        assert relative(end, own) < 1e-5
        if solver is None:
            assert relative(end, loop((model, theirs), x, 6)) < 1e-4


def test_a_pipeline_is_saved_and_loaded_with_our_scheduler(diffusers, tmp_path):
    pipe = diffusers.DDPMPipeline(unet(diffusers), diffusers.DDPMScheduler(prediction_type="sample"))
    pipe.scheduler = from_diffusers(pipe.scheduler, DPMpp2M())
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert again.scheduler.solver == DPMpp2M()
    ends = []
    for p in (pipe, again):
        p.set_progress_bar_config(disable=True)
        ends.append(p(num_inference_steps=3, output_type="pt", generator=seeded()).images)
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


# --- networks ---------------------------------------------------------------------------------------------------


def test_a_flux_network_is_told_the_time_in_thousandths(diffusers):
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    cond = {
        "encoder_hidden_states": noise((2, 5, 12)),
        "pooled_projections": noise((2, 10)),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    denoiser = Denoiser.from_diffusers(model, diffusers.FlowMatchEulerDiscreteScheduler())
    x, t = noise((2, 6, 4)), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        expected = model(x, timestep=t, **cond, return_dict=False)[0]
        torch.testing.assert_close(denoiser.raw(x, t, cond), expected, rtol=1e-4, atol=1e-5)
        estimate = denoiser(x, t, cond)
    torch.testing.assert_close(estimate.x0, x - t[:, None, None] * expected, rtol=1e-4, atol=1e-5)


def test_conditions_without_an_argument_are_added_conditions(diffusers):
    """As SDXL wants its pooled text and sizes, which so can be guided like any other condition."""
    torch.manual_seed(0)
    sizes = {"projection_class_embeddings_input_dim": 10 + 6 * 8, "addition_time_embed_dim": 8}
    more = {"addition_embed_type": "text_time", **sizes}
    model = conditional_unet(diffusers, **more)
    cond = {**prompts(1), "text_embeds": noise((2, 10)), "time_ids": torch.full((2, 6), 8.0)}
    x, t = noise((2, 4, 8, 8)), torch.tensor([10.0, 700.0])
    with torch.no_grad():
        out = Denoiser.from_diffusers(model, diffusers.DDPMScheduler()).raw(x, t, cond)
        added = {k: cond[k] for k in ("text_embeds", "time_ids")}
        expected = model(x, t, cond["encoder_hidden_states"], added_cond_kwargs=added, return_dict=False)[0]
    assert torch.equal(out, expected)


def test_a_video_network_is_a_denoiser_too(diffusers):
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
    ).eval()
    theirs = diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=3.0)
    x, cond, t = noise((2, 4, 3, 4, 4)), {"encoder_hidden_states": noise((2, 5, 8))}, torch.tensor([0.3, 0.8])
    with torch.no_grad():
        out = Denoiser.from_diffusers(model, theirs).raw(x, t, cond)
        expected = model(x, torch.tensor([300, 800]), cond["encoder_hidden_states"], return_dict=False)[0]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_a_denoiser_of_a_diffusers_network_is_an_artifact(diffusers, tmp_path):
    denoiser = Denoiser.from_diffusers(unet(diffusers), diffusers.DDPMScheduler())
    save(denoiser, tmp_path / "student")
    again = load(tmp_path / "student")
    x, t = noise((2, 3, 8, 8)), torch.tensor([10.0, 700.0])
    assert (again.path, again.prediction) == (denoiser.path, denoiser.prediction)
    with torch.no_grad():
        assert torch.equal(again(x, t).x0, denoiser(x, t).x0)


def test_a_pipeline_with_our_scheduler_is_a_denoiser(diffusers):
    pipe = diffusers.DDPMPipeline(unet(diffusers), diffusers.DDPMScheduler())
    before = Denoiser.from_diffusers(pipe)
    pipe.scheduler = from_diffusers(pipe.scheduler, DPMpp2M())
    after = Denoiser.from_diffusers(pipe)
    assert (after.path, after.prediction) == (before.path, before.prediction)
    assert after.net.model is pipe.unet


def test_networks_that_do_not_fit_are_refused(diffusers):
    scheduler = diffusers.DDPMScheduler()
    with pytest.raises(ValueError, match="sample or hidden_states"):
        Denoiser.from_diffusers(torch.nn.Linear(2, 2), scheduler)
    with pytest.raises(ValueError, match="give the scheduler"):
        Denoiser.from_diffusers(unet(diffusers))
    with pytest.raises(ValueError, match="no unet or transformer"):
        Denoiser.from_diffusers(object(), scheduler)


def test_the_snippets_of_the_docs_run(diffusers, tmp_path, monkeypatch):
    page = FilePath(__file__).parents[2] / "docs/diffusers.md"
    snippets = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet in snippets:  # each may use the names of those before it
        exec(snippet, names)  # noqa: S102
    assert len(snippets) == 4
    for name, shape in (("images", (2, 3, 16, 16)), ("x", (2, 3, 16, 16)), ("latents", (2, 4, 8, 8))):
        assert names[name].shape == shape and names[name].isfinite().all()


# --- pipelines that need transformers -----------------------------------------------------------------------------


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


def stable_diffusion(diffusers):
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(diffusers),
        text_encoder=None,
        tokenizer=None,
        unet=conditional_unet(diffusers),
        scheduler=diffusers.PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_stable_diffusion_pipeline(diffusers, transformers):
    pipe = stable_diffusion(diffusers)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe.scheduler
    positive, negative = (prompts(k)["encoder_hidden_states"] for k in (1, 5))

    def run(scheduler):
        pipe.scheduler = scheduler
        more = {"prompt_embeds": positive, "negative_prompt_embeds": negative, "generator": seeded()}
        return pipe(**more, num_inference_steps=6, guidance_scale=4.0, height=8, width=8, output_type="latent").images

    official, same = run(theirs), run(from_diffusers(theirs))
    assert relative(same, official) < 1e-4
    new = run(from_diffusers(theirs, DPMpp2M(), IndexSpacing("trailing")))
    found, x = read(theirs), torch.randn(2, 4, 8, 8, generator=seeded())
    guided = CFG(Denoiser.from_diffusers(pipe), 4.0, {"encoder_hidden_states": negative})
    times = IndexSpacing("trailing")(found.path, 6)
    with torch.no_grad():
        end = sample(guided.bind({"encoder_hidden_states": positive}), x, found.path, DPMpp2M(), times)
    assert relative(new, end) < 1e-5


def test_stable_diffusion_3_pipeline(diffusers, transformers):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    nothing = dict.fromkeys(
        ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=sd3(diffusers), scheduler=theirs, vae=autoencoder(diffusers), **nothing
    )
    pipe.set_progress_bar_config(disable=True)
    positive, negative = prompts(1, True), prompts(5, True)

    def run(scheduler):
        pipe.scheduler = scheduler
        return pipe(
            prompt_embeds=positive["encoder_hidden_states"],
            negative_prompt_embeds=negative["encoder_hidden_states"],
            pooled_prompt_embeds=positive["pooled_projections"],
            negative_pooled_prompt_embeds=negative["pooled_projections"],
            generator=seeded(),
            num_inference_steps=6,
            guidance_scale=4.0,
            height=8,
            width=8,
            output_type="latent",
        ).images

    assert relative(run(from_diffusers(theirs)), run(theirs)) < 1e-4
    new = run(from_diffusers(theirs, UniPC(2)))
    found, x = read(theirs), torch.randn(2, 4, 8, 8, generator=seeded())
    guided = CFG(Denoiser.from_diffusers(pipe), 4.0, negative)
    with torch.no_grad():
        end = sample(guided.bind(positive), x, found.path, UniPC(2), found.times(6))
    assert relative(new, end) < 1e-5


@pytest.mark.parametrize("solver", [None, DPMpp2M(), Heun()], ids=kind)
def test_stable_diffusion_image_to_image_pipeline(diffusers, transformers, solver):
    pipe = stable_diffusion(diffusers)
    theirs = diffusers.DPMSolverMultistepScheduler(**SD)
    img2img = diffusers.StableDiffusionImg2ImgPipeline(
        **{**pipe.components, "scheduler": theirs}, requires_safety_checker=False
    )
    img2img.set_progress_bar_config(disable=True)

    def run(scheduler):
        img2img.scheduler = scheduler
        return img2img(
            image=torch.rand(2, 3, 8, 8, generator=seeded(4)),
            prompt_embeds=prompts(1)["encoder_hidden_states"],
            negative_prompt_embeds=prompts(5)["encoder_hidden_states"],
            generator=seeded(),
            strength=0.6,
            num_inference_steps=10,
            guidance_scale=3.0,
            output_type="latent",
        ).images

    end = run(from_diffusers(theirs, solver))
    assert end.isfinite().all()
    if solver is None:
        assert relative(end, run(theirs)) < 1e-4
