"""The configuration of a diffusers scheduler in fewstep's nouns: path, prediction, time grid, solver.

    read(pipe.scheduler)                                  a scheduler, or
    read({"_class_name": "DDIMScheduler", ...})           its configuration; what is absent has the class's default

Schedulers that keep x = x0 + sigma eps (Euler, Heun, LMS, KDPM2) are read as the variance-preserving process their
networks are shown: our state is theirs times a = 1/sqrt(1 + sigma^2). Noise levels are float64 here, float32 there.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.grids import Grid
from fewstep.guidance.thresholding import StaticThreshold
from fewstep.integrations.diffusers_grids import Distilled, FlowSpacing, IndexSpacing, Kind, SigmaSpacing
from fewstep.integrations.diffusers_labels import Labelled, NegatedEDM
from fewstep.integrations.diffusers_solvers import (
    EulerAtFinal,
    LargeVariance,
    LCMSampling,
    StridedDDIM,
    StridedPNDM,
    TCDSampling,
)
from fewstep.integrations.diffusers_table import BarBetas, LastBar, SigmaTable, SigmoidBetas
from fewstep.integrations.diffusers_threshold import BoundedThreshold
from fewstep.paths import EDM, Path, RectifiedFlow
from fewstep.paths.betas import Betas, CosineBetas, GivenBetas, LinearBetas, ScaledLinearBetas, ZeroTerminalSNR
from fewstep.paths.tabulated import IndexedVP, log_alphas
from fewstep.precondition import EDMPrecondition
from fewstep.prediction import X0, Eps, Prediction, U, V
from fewstep.solvers.ancestral import Ancestral
from fewstep.solvers.base import Solver
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.deis import DEIS
from fewstep.solvers.dpm_multistep import DPMMultistep
from fewstep.solvers.dpm_sde import DPMMultistepSDE
from fewstep.solvers.gamma import GammaSampling
from fewstep.solvers.heun import Heun
from fewstep.solvers.kdpm2 import KDPM2, KDPM2Ancestral
from fewstep.solvers.lms import LMS
from fewstep.solvers.runge_kutta import HEUN2, RungeKutta
from fewstep.solvers.unipc import UniPC

Config = Mapping[str, Any]
Clip = StaticThreshold | BoundedThreshold


@dataclass(frozen=True)
class Sampling:
    """A scheduler's configuration as fewstep objects; all of them describe themselves as JSON
    (`fewstep.artifacts.describe`).

    Attributes:
        path, prediction: the process, and what the network outputs and is told about time.
        grid, solver: how the scheduler samples; any other solver and grid of the path serve as well.
        init_noise_sigma: factor of the pipeline's initial noise, in our scale; None: s at the first time.
        clip: what is done to x0, or None.
        scale: whether the scheduler keeps our x ("path") or x/a ("edm").
        steps: `num_train_timesteps`.
    """

    path: Path
    prediction: Prediction
    grid: Grid
    solver: Solver
    init_noise_sigma: float | None = 1.0
    clip: Clip | None = None
    scale: Literal["path", "edm"] = "path"
    steps: int = 1000

    def times(
        self,
        n: int | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> Tensor:
        """The (n + 1,) times of `set_timesteps` with these arguments."""
        return grid_times(self.path, self.prediction, self.grid, n, timesteps, sigmas, mu)


def grid_times(
    path: Path,
    prediction: Prediction,
    grid: Grid,
    n: int | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> Tensor:
    """(n + 1,) times: of n steps of the grid, at given labels, or at given sigmas (s/a; the unshifted t of flow grids).

    mu is the shift that pipelines of resolution-dependent flow models compute; grids without such a shift do not depend
    on it.
    """
    if timesteps is not None and sigmas is not None:
        raise ValueError("give timesteps or sigmas, not both: one follows from the other")
    if mu is not None and isinstance(grid, FlowSpacing) and grid.dynamic:
        grid = grid.shifted(mu)
    end = getattr(grid, "end", None)
    last = torch.tensor([end if isinstance(end, float) else path.t_min], dtype=torch.float64)
    if timesteps is not None:
        labels = torch.as_tensor(timesteps, dtype=torch.float64)
        return torch.cat([prediction.time(labels) if isinstance(prediction, Labelled) else labels, last])
    if sigmas is not None:
        given = torch.as_tensor(sigmas, dtype=torch.float64)
        if isinstance(grid, FlowSpacing):
            return grid.given(given)
        if isinstance(path, RectifiedFlow):
            return torch.cat([given, last]) if given[-1] > 0 else given
        return torch.cat([path.time_of_log_snr(-given[given > 0].log()), last])
    if n is None:
        raise ValueError("give a number of steps, timesteps or sigmas")
    return grid(path, n)


def read(scheduler: Any) -> Sampling:
    """`Sampling` of a scheduler object or of its configuration with "_class_name".

    Raises:
        ValueError: schedulers and options that have no equivalent here.
    """
    if isinstance(scheduler, Mapping):
        name, given = scheduler.get("_class_name"), scheduler
    else:
        name, given = type(scheduler).__name__, scheduler.config
    if name not in READERS:
        raise ValueError(f"{name} cannot be read; schedulers that can: {', '.join(sorted(READERS))}")
    signature = inspect.signature(getattr(import_module("diffusers"), name).__init__)
    defaults = {k: p.default for k, p in signature.parameters.items() if k != "self"}
    config = defaults | {k: v for k, v in given.items() if k in defaults}
    return replace(READERS[name](config), steps=config["num_train_timesteps"])


def refuse(c: Config, **allowed: Any) -> None:
    """Raise where an option of the configuration differs from the one value that is supported."""
    for name, value in allowed.items():
        if c.get(name, value) != value:
            raise ValueError(f"{name}={c[name]!r} has no equivalent here; supported: {value!r}")


# --- tables -------------------------------------------------------------------------------------------------------


def betas(c: Config, finite: bool = False) -> Betas:
    """The table of betas; `finite` keeps sigma of zero-SNR tables finite, as schedulers in sigma do."""
    n, start, end, kind = c["num_train_timesteps"], c["beta_start"], c["beta_end"], c["beta_schedule"]
    tables: dict[str, Callable[[], Betas]] = {
        "linear": lambda: LinearBetas(n, start, end),
        "scaled_linear": lambda: ScaledLinearBetas(n, start, end),
        "squaredcos_cap_v2": lambda: CosineBetas(n),
        "sigmoid": lambda: SigmoidBetas(n, start, end),
        "exp": lambda: BarBetas(n, "exp"),
        "laplace": lambda: BarBetas(n, "laplace"),
    }
    if c["trained_betas"] is not None:
        table: Betas = GivenBetas(tuple(float(b) for b in c["trained_betas"]))
    elif kind in tables:
        table = tables[kind]()
    else:
        raise ValueError(f"beta_schedule is one of {', '.join(tables)}, not {kind!r}")
    if c.get("rescale_betas_zero_snr", False):
        table = ZeroTerminalSNR(table)
        return LastBar(table) if finite else table
    return table


def sigmas(table: Betas) -> Tensor:
    """s/a of a table, (N,)."""
    log_a = log_alphas(table())
    return (-torch.expm1(2 * log_a)).sqrt() / log_a.exp()


def prediction(c: Config, flow: bool = False) -> Prediction:
    """What `prediction_type` says the network outputs."""
    kinds = {"epsilon": Eps(), "sample": X0(), "original_sample": X0(), "v_prediction": V()}
    if flow:
        kinds |= {"flow_prediction": U()}
    if c["prediction_type"] not in kinds:
        raise ValueError(f"prediction_type is one of {', '.join(kinds)} here, not {c['prediction_type']!r}")
    return kinds[c["prediction_type"]]


def clip(c: Config) -> Clip | None:
    """Thresholding or clipping of x0."""
    if c.get("thresholding", False):
        return BoundedThreshold(c["dynamic_thresholding_ratio"], c["sample_max_value"])
    return StaticThreshold(c["clip_sample_range"]) if c.get("clip_sample", False) else None


def conversion(c: Config) -> Kind | None:
    """How sigmas are respaced."""
    named: tuple[tuple[str, Kind], ...] = (
        ("use_karras_sigmas", "karras"),
        ("use_exponential_sigmas", "exponential"),
        ("use_beta_sigmas", "beta"),
        ("use_lu_lambdas", "exponential"),
    )
    return next((kind for option, kind in named if c.get(option)), None)


# --- schedulers on the index table --------------------------------------------------------------------------------


def _indexed(c: Config, solver: Solver, end: float) -> Sampling:
    grid = IndexSpacing(c["timestep_spacing"], c["steps_offset"], end=end)
    return Sampling(IndexedVP(betas(c)), prediction(c), grid, solver, clip=clip(c))


def _clean_end(c: Config) -> float:
    return -1.0 if c["set_alpha_to_one"] else 0.0


def _ddim(c: Config) -> Sampling:
    return _indexed(c, StridedDDIM(), _clean_end(c))


def _ddpm(c: Config) -> Sampling:
    if c["variance_type"] == "fixed_large_log":
        raise ValueError(
            "variance_type='fixed_large_log' has no equivalent here: diffusers takes the root of a logarithm"
        )
    return _indexed(c, LargeVariance() if c["variance_type"] == "fixed_large" else Ancestral(), -1.0)


def _pndm(c: Config) -> Sampling:
    solver = StridedPNDM(not c["skip_prk_steps"], c["prediction_type"] == "v_prediction")
    return _indexed(c, solver, _clean_end(c))


def _lcm(c: Config) -> Sampling:
    path, grid = IndexedVP(betas(c)), Distilled(c["original_inference_steps"])
    return Sampling(path, prediction(c), grid, LCMSampling(c["timestep_scaling"]), clip=clip(c))


def _tcd(c: Config) -> Sampling:
    refuse(c, thresholding=False)
    grid = Distilled(c["original_inference_steps"], end=0.0)
    return Sampling(IndexedVP(betas(c)), prediction(c), grid, TCDSampling(), clip=None)


# --- the DPM-Solver family ----------------------------------------------------------------------------------------


def _multistep(c: Config) -> Solver:
    """DPM-Solver(++) or its SDE."""
    kind = c["algorithm_type"]
    k, rule = c["solver_order"], "taylor" if c["solver_type"] == "heun" else "midpoint"
    uses = "eps" if kind in ("dpmsolver", "sde-dpmsolver") else "x0"
    tail, below = ((2, 1), 15) if c["lower_order_final"] else ((), None)
    if c["euler_at_final"] and k < 3:
        tail, below = (1,), None
    make = DPMMultistepSDE if kind.startswith("sde") else DPMMultistep
    solver = make(k=k, uses=uses, rule=rule, tail=tail, below=below)
    return EulerAtFinal(solver) if c["euler_at_final"] and k == 3 else solver


def _unipc(c: Config) -> Solver:
    refuse(c, disable_corrector=[], solver_p=None)
    b = c["solver_type"] if c["solver_type"] in ("bh1", "bh2") else "bh2"
    return UniPC(c["solver_order"], uses="x0" if c["predict_x0"] else "eps", b=b, tail=c["lower_order_final"])


def _deis(c: Config) -> Solver:
    return DEIS(c["solver_order"] - 1, "lambda", 15 if c["lower_order_final"] else 0)


def _family(
    solver: Callable[[Config], Solver], rounding: Literal["nearest", "down"], repeats: bool
) -> Callable[[Config], Sampling]:
    """A reader of the family. rounding: of the labels of exponential and beta sigmas; repeats: respaced sigmas that do
    not end clean end on their last value, not on the table's."""

    def reader(c: Config) -> Sampling:
        if c.get("use_flow_sigmas"):
            return _family_flow(c, solver(c), repeats)
        table, kind = betas(c, finite=True), conversion(c)
        clean = c.get("final_sigmas_type", "sigma_min") == "zero"
        if kind is None:
            top = _above(table, c.get("lambda_min_clipped", -float("inf")))
            grid: Grid = IndexSpacing(c["timestep_spacing"], c["steps_offset"], True, True, -1.0 if clean else 0.0, top)
            return Sampling(IndexedVP(table), prediction(c), grid, solver(c), clip=clip(c))
        grid = SigmaSpacing(kind, *_range(c, table), end=_end(clean, repeats, table))
        rounded = rounding if kind != "karras" and not c.get("use_lu_lambdas") else "nearest"
        if rounded == "nearest" and c["beta_schedule"] == "squaredcos_cap_v2" and "lambda_min_clipped" in c:
            rounded = "down"  # DPMSolverMultistepScheduler does not round these, and cuts all labels to integers
        label = Labelled(prediction(c), 1.0, rounded, 0.0, len(sigmas(table)) - 1.0)
        return Sampling(SigmaTable(table, "log_sigma"), label, grid, solver(c), clip=clip(c))

    return reader


def _range(c: Config, table: Betas) -> tuple[float, float]:
    """(high, low) of the sigmas that are respaced: the configuration's, or the table's."""
    low, high = sigmas(table)[[0, -1]].tolist()
    given_low, given_high = c.get("sigma_min"), c.get("sigma_max")
    return high if given_high is None else given_high, low if given_low is None else given_low


def _end(clean: bool, repeats: bool, table: Betas) -> float | Literal["clean", "repeat"]:
    if clean:
        return "clean"
    return "repeat" if repeats else sigmas(table)[0].item()


def _above(table: Betas, lam_min: float) -> int | None:
    """How many indices have lambda >= lam_min; None for all."""
    if lam_min == -float("inf"):
        return None
    return int((-sigmas(table).log() >= lam_min).sum())


def _family_flow(c: Config, solver: Solver, repeats: bool) -> Sampling:
    """`use_flow_sigmas`: a rectified flow with labels N t cut to integers."""
    refuse(c, use_exponential_sigmas=False, use_beta_sigmas=False, use_lu_lambdas=False)
    n, clean = c["num_train_timesteps"], c.get("final_sigmas_type", "sigma_min") == "zero"
    label = Labelled(prediction(c, flow=True), float(n), "down")
    dynamic = c["time_shift_type"] if c["use_dynamic_shifting"] else None
    unipc = "predict_x0" in c
    if c["use_karras_sigmas"]:
        if not unipc:
            raise ValueError("use_karras_sigmas with use_flow_sigmas is read for UniPCMultistepScheduler alone")
        grid: Grid = SigmaSpacing("karras", *_range(c, betas(c, finite=True)), end="clean" if clean else "repeat")
    elif unipc:
        end = 0.0 if clean else "repeat"
        grid = FlowSpacing(1.0, 1 / n, True, c["flow_shift"], dynamic, c["shift_terminal"], below_one=1e-6, end=end)
    else:
        end = 0.0 if clean else "repeat" if repeats else sigmas(betas(c, finite=True))[0].item()
        grid = FlowSpacing(1 - 1 / n, 0.0, True, c["flow_shift"], dynamic, end=end)
    return Sampling(RectifiedFlow(), label, grid, solver, clip=clip(c))


# --- schedulers in sigma ------------------------------------------------------------------------------------------


def _sigma(solver: Solver) -> Callable[[Config], Sampling]:
    def reader(c: Config) -> Sampling:
        refuse(c, interpolation_type="linear")
        table, kind = betas(c, finite=True), conversion(c)
        clean = c.get("final_sigmas_type", "zero") == "zero"
        spacing = IndexSpacing(c["timestep_spacing"], c["steps_offset"], whole=False, end=-1.0 if clean else 0.0)
        label, grid = prediction(c), spacing
        path = SigmaTable(table, "sigma" if kind is None else "log_sigma")
        if kind is not None:
            grid = SigmaSpacing(kind, c.get("sigma_max"), c.get("sigma_min"), spacing, _end(clean, False, table))
            rounding = "nearest" if kind == "karras" and isinstance(solver, KDPM2 | KDPM2Ancestral) else "none"
            label = Labelled(label, 1.0, rounding, 0.0, path.t_max)
        if c.get("timestep_type") == "continuous" and c["prediction_type"] == "v_prediction":
            label = NegatedEDM(1.0)
        init = 1.0 if c["timestep_spacing"] == "leading" else None
        return Sampling(path, label, grid, solver, init, clip(c), "edm")

    return reader


def _edm(solver: Callable[[Config], Solver]) -> Callable[[Config], Sampling]:
    def reader(c: Config) -> Sampling:
        if c["prediction_type"] not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"prediction_type of EDM schedulers is epsilon or v_prediction, not {c['prediction_type']!r}"
            )
        net = EDMPrecondition if c["prediction_type"] == "epsilon" else NegatedEDM
        end = "clean" if c["final_sigmas_type"] == "zero" else "repeat"
        grid = SigmaSpacing(c["sigma_schedule"], c["sigma_max"], c["sigma_min"], None, end, c["rho"])
        init = (c["sigma_max"] ** 2 + 1) ** 0.5
        return Sampling(EDM(c["sigma_max"]), net(c["sigma_data"]), grid, solver(c), init, clip(c))

    return reader


# --- flow matching ------------------------------------------------------------------------------------------------


def _flow(solver: Callable[[Config], Solver]) -> Callable[[Config], Sampling]:
    def reader(c: Config) -> Sampling:
        refuse(c, invert_sigmas=False)
        n, k = c["num_train_timesteps"], c["shift"]
        dynamic = c["time_shift_type"] if c.get("use_dynamic_shifting") else None
        # The shift acts twice on the last sigma: once on the scheduler's sigma_min, once on the whole grid.
        last = 1 / n if dynamic else k / n / (1 + (k - 1) / n)
        grid = FlowSpacing(1.0, last, False, k, dynamic, c.get("shift_terminal"), conversion(c))
        return Sampling(RectifiedFlow(), Labelled(U(), float(n)), grid, solver(c))

    return reader


READERS: dict[str, Callable[[Config], Sampling]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "LCMScheduler": _lcm,
    "TCDScheduler": _tcd,
    "DPMSolverMultistepScheduler": _family(_multistep, "down", False),
    "UniPCMultistepScheduler": _family(_unipc, "down", True),
    "DEISMultistepScheduler": _family(_deis, "down", True),
    "EulerDiscreteScheduler": _sigma(DDIM()),
    "EulerAncestralDiscreteScheduler": _sigma(Ancestral()),
    "HeunDiscreteScheduler": _sigma(Heun()),
    "LMSDiscreteScheduler": _sigma(LMS()),
    "KDPM2DiscreteScheduler": _sigma(KDPM2()),
    "KDPM2AncestralDiscreteScheduler": _sigma(KDPM2Ancestral()),
    "EDMEulerScheduler": _edm(lambda c: DDIM()),
    "EDMDPMSolverMultistepScheduler": _edm(_multistep),
    "FlowMatchEulerDiscreteScheduler": _flow(lambda c: GammaSampling(1.0) if c["stochastic_sampling"] else DDIM()),
    "FlowMatchHeunDiscreteScheduler": _flow(lambda c: RungeKutta(HEUN2, "t")),
}
