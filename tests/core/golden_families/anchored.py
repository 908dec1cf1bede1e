"""Families irsde, sgmse_pc, sgmse_sb and resshift: samplers on paths with an anchor."""

import torch
from golden_cases import Case, Checks, Counting, counted, sampled

from fewstep.denoiser import Denoiser
from fewstep.estimate import Estimate
from fewstep.guidance.next_time import NextTime
from fewstep.paths.residual_shift import ResidualShift
from fewstep.prediction import X0, Eps, Residual
from fewstep.sampling import Callback, sample
from fewstep.solvers.ancestral import Ancestral, UnitGainAncestral
from fewstep.solvers.bridge import BridgeStart
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.diffusion import OwnDiffusion
from fewstep.solvers.euler_maruyama import EulerMaruyama
from fewstep.solvers.mean_at_end import MeanAtEnd
from fewstep.solvers.mean_reverting import MeanRevertingEuler
from fewstep.solvers.predictor_corrector import PredictorCorrector
from golden_families.paths import path_of


def recorded(case: Case, sign: float = 1.0):
    """The noise of the case, one draw after the other; None for deterministic cases."""
    if "noise" not in case:
        return None
    draws = iter(sign * case.array("noise"))
    return lambda row: next(draws)


def first(case: Case, y: torch.Tensor, level: float) -> torch.Tensor:
    """`y`, or `y + (words)*x_init/A` with `level` for the words."""
    words = case["x_init"].split("*")[-1].strip()
    return y if case["x_init"] == "y" else y + level * case.array(words)


def irsde(case: Case) -> Checks:
    """reverse_sde, reverse_ode, reverse_posterior over the indices T .. 0, from y + sigma_max xi."""
    path, y = path_of(case), case.array("y")
    solver = {
        "reverse_sde": MeanRevertingEuler(),
        "reverse_ode": MeanRevertingEuler(OwnDiffusion(0.0)),
        "reverse_posterior": Ancestral(),
    }[case["function"].split(".")[-1]]
    grid = torch.arange(path.steps, -1, -1, dtype=torch.float64)
    # reverse_sde subtracts its noise.
    noise = recorded(case, -1.0 if isinstance(solver, MeanRevertingEuler) else 1.0)
    yield "dt", torch.tensor(path.dt), torch.tensor(case.get("dt", path.dt))
    yield from sampled(
        case, case.mixture(case["mixture"], path, y), first(case, y, path.sigma_max), path, solver, grid, y, noise
    )


def sgmse_pc(case: Case) -> Checks:
    """Predictor and corrector by name; times linspace(1, eps, N), the last step has length eps."""
    path, y, given = path_of(case), case.array("y"), case["sample_kwargs"]
    predictor, corrector = case["function"].split(" with ")[1].split(" + ")
    if predictor != "ReverseDiffusionPredictor" or corrector not in ("AnnealedLangevinDynamics", "None"):
        raise ValueError(f"no mapping for {predictor} + {corrector}")
    corrections = given.get("corrector_steps", 1) if corrector != "None" else 0
    solver = PredictorCorrector(EulerMaruyama(), given.get("snr", 0.1), corrections)
    solver = MeanAtEnd(solver) if given.get("denoise", True) else solver
    n, end = given.get("N", 30), given.get("eps", 0.03)
    grid = torch.cat([torch.linspace(path.t_max, end, n, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    level = path.schedule(grid[:1])[2].item()
    world = case.mixture(case["mixture"], path, y)
    yield from sampled(case, world, first(case, y, level), path, solver, grid, y, recorded(case))


def sgmse_sb(case: Case) -> Checks:
    """SB-ODE and SB-SDE as published: network time and first step have their quirks."""
    path, y, given = path_of(case), case.array("y"), case["sample_kwargs"]
    ode = given.get("sampler_type", "ode") == "ode"
    solver = BridgeStart(DDIM(), eta=0.0, official=True) if ode else MeanAtEnd(BridgeStart(Ancestral()))
    grid = torch.linspace(path.t_max, given.get("eps", 1e-4), given.get("N", 50) + 1, dtype=torch.float64)
    denoise = case.mixture(case["mixture"], path, y)
    if case.get("network_time", "target") == "target":
        denoise = NextTime(denoise, path, grid, y)
    yield from sampled(case, denoise, first(case, y, 0.0), path, solver, grid, y, recorded(case))


class States(Callback):
    """Remembers the start and the state after every step."""

    def __init__(self, start: torch.Tensor) -> None:
        self.x = [start]

    def on_step(self, x, done, total, row):
        self.x.append(x)
        return False


class ExactNet(torch.nn.Module):
    """A network that knows the mixture and answers in the parameterisation of its prediction, through the index
    label.
    """

    def __init__(self, world, path, prediction, y) -> None:
        super().__init__()
        self.world, self.path, self.prediction, self.y = world, path, prediction, y

    def forward(self, x, t):
        exact = self.world(x, t)
        return self.prediction.target(exact.x0, exact.eps, self.path.coeffs(t, x), self.y)


def resshift(case: Case) -> Checks:
    """p_sample over all indices, with a network of the named output."""
    path, y, given = path_of(case), case.array("y"), case["sample_kwargs"]
    assert isinstance(path, ResidualShift)
    prediction = {"START_X": X0(), "RESIDUAL": Residual(), "EPSILON": Eps()}[given.get("model_mean_type", "START_X")]
    net = Counting(ExactNet(case.mixture(case["mixture"], path, y), path, prediction, y))
    bound = Denoiser(torch.nn.Module(), path, prediction)
    bound.net.forward = net
    denoise = bound.bind(y=y)
    grid = torch.arange(path.steps, -1, -1, dtype=torch.float64) - 1
    end = path.schedule(grid[:1])[2].item()
    x = first(case, y, end)
    run = States(x)

    def clipped(x, t):
        return Estimate(denoise(x, t).x0.clamp(-1, 1), lambda: torch.full_like(x, torch.nan))

    model = clipped if given.get("clip_denoised", False) else denoise
    noise = recorded(case) or (lambda row: torch.zeros_like(y))
    out = sample(model, x, path, UnitGainAncestral(), grid, y, noise, [run])
    yield "out", out, case.array("out")
    if "traj" in case:
        yield "traj", torch.stack(run.x), case.array("traj")
    if "nfe" in case:
        yield counted(case, net.calls)


FAMILIES = {"irsde": irsde, "sgmse_pc": sgmse_pc, "sgmse_sb": sgmse_sb, "resshift": resshift}
