"""Family k_diffusion: the samplers of k_diffusion/sampling.py on given sigmas."""

from golden_cases import Counting, counted, sampled

from fewstep.grids.fast import fast_orders
from fewstep.paths.edm import EDM
from fewstep.solvers.ancestral import Renoised
from fewstep.solvers.churn import Churn
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.dpm_adaptive import DPMAdaptive
from fewstep.solvers.dpm_fast import DPMFast
from fewstep.solvers.dpm_sde import DPMpp2MSDE, DPMpp3MSDE
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.heun import Heun
from fewstep.solvers.kdpm2 import KDPM2, KDPM2Ancestral
from fewstep.solvers.lms import LMS
from fewstep.solvers.singlestep_sde import DPMpp2SAncestral, DPMppSDE
from fewstep.solvers.step_control import PIDControl
from golden_families.dpm_solver import singlestep_grid
from golden_families.starts import start

# Times are sigmas; the official samplers know no largest one.
PATH = EDM(sigma_max=1e9)


def churned(solver):
    def build(given):
        if not given.get("s_churn", 0.0):
            return solver
        bounds = given.get("s_tmin", 0.0), given.get("s_tmax", float("inf"))
        return Churn(solver, given["s_churn"], *bounds, given.get("s_noise", 1.0))

    return build


def noisy(cls, *more, **fixed):
    """cls with eta, s_noise and `more` of the arguments of the official sampler."""
    return lambda given: cls(**fixed, **{k: given[k] for k in ("eta", "s_noise", *more) if k in given})


def two_m_sde(given):
    return noisy(DPMpp2MSDE, rule="taylor" if given.get("solver_type", "midpoint") == "heun" else "midpoint")(given)


SOLVERS = {
    "sample_euler": churned(DDIM()),
    "sample_heun": churned(Heun()),
    "sample_dpm_2": churned(KDPM2()),
    "sample_lms": lambda given: LMS(given.get("order", 4)),
    "sample_dpmpp_2m": lambda given: DPMpp2M(),
    "sample_euler_ancestral": noisy(Renoised, solver=DDIM()),
    "sample_dpm_2_ancestral": noisy(KDPM2Ancestral),
    "sample_dpmpp_2s_ancestral": noisy(DPMpp2SAncestral),
    "sample_dpmpp_sde": noisy(DPMppSDE, "r", brownian=False),
    "sample_dpmpp_2m_sde": two_m_sde,
    "sample_dpmpp_3m_sde": noisy(DPMpp3MSDE),
}
# Official arguments of the adaptive solver under our names.
TOLERANCES = {"order": "k", "rtol": "rtol", "atol": "atol", "h_init": "h_init", "eta": "eta", "s_noise": "s_noise"}
CONTROL = {"pcoeff": "p", "icoeff": "i", "dcoeff": "d", "accept_safety": "safety"}


def recorded(case, grid=None):
    """The recorded draws in the order of the rows that ask; churn draws in every step, used or not."""
    if "noise" not in case:
        return None
    draws = case.array("noise")
    if grid is not None and case["sample_kwargs"].get("s_churn", 0.0):
        return lambda row: draws[grid.tolist().index(row.t)]
    left = iter(draws)
    return lambda row: next(left)


def fast(case, world):
    given, n = case["sample_kwargs"], case["n"]
    grid = singlestep_grid(PATH, "logSNR", case["sigma_max"], case["sigma_min"], None, fast_orders(3, n))
    yield from sampled(case, world, start(case), PATH, noisy(DPMFast)(given), grid, noise=recorded(case))


def adaptive(case, world):
    given = case["sample_kwargs"]
    control = PIDControl(**{ours: given[name] for name, ours in CONTROL.items() if name in given})
    solver = DPMAdaptive(control=control, **{ours: given[name] for name, ours in TOLERANCES.items() if name in given})
    counting = Counting(world)
    ends = case["sigma_max"], case["sigma_min"]
    yield "out", solver.sample(counting, start(case), PATH, *ends, generator=recorded(case)).x, case.array("out")
    yield counted(case, counting.calls)


def k_diffusion(case):
    world, which = case.mixture(case["mixture"], PATH), case["function"]
    if which in ("sample_dpm_fast", "sample_dpm_adaptive"):
        yield from (fast if which == "sample_dpm_fast" else adaptive)(case, world)
        return
    grid = case.array("sigmas")
    solver = SOLVERS[which](case["sample_kwargs"])
    yield from sampled(case, world, start(case), PATH, solver, grid, noise=recorded(case, grid))


FAMILIES = {"k_diffusion": k_diffusion}
