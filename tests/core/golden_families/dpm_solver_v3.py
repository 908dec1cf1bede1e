"""Family dpm_solver_v3: statistics per coordinate at nodes even in lambda; `timesteps` are the times snapped to them."""

import torch
from golden_cases import sampled

from fewstep.solvers.dpm_v3 import DPMSolverV3
from fewstep.solvers.ems import EMS, data_form
from golden_families.dpm_solver import nodes
from golden_families.paths import path_of
from golden_families.starts import start


def times(path, skip, hi, lo, n):
    """n + 1 times from hi to lo; `edm` is even in rho^(1/7), the others are DPM-Solver's."""
    if skip != "edm":
        return nodes(path, skip, hi, lo, n)
    first, last = (-path.log_snr(torch.tensor([hi, lo], dtype=torch.float64)) / 7).exp().tolist()
    return path.time_of_log_snr(-7 * torch.linspace(first, last, n + 1, dtype=torch.float64).log())


def statistics(case, path, hi, lo):
    first, last = path.log_snr(torch.tensor([hi, lo], dtype=torch.float64)).tolist()
    l, s, b = (case.array(f"{case['ems']}/{name}") for name in "lsb")
    return data_form(first, last, len(l) - 1) if case["solver"].get("degenerated", False) else EMS(first, last, l, s, b)


def dpm_solver_v3(case):
    given, chosen, path = case["sample_kwargs"], case["solver"], path_of(case)
    ends = chosen.get("t_start") or path.t_max, chosen.get("t_end") or 1e-3
    solver = DPMSolverV3(
        statistics(case, path, *ends),
        p=given.get("order", 2),
        p_pseudo=given.get("p_pseudo", False),
        corrector=given.get("use_corrector", False),
        c_pseudo=given.get("c_pseudo", False),
        tail=given.get("lower_order_final", True),
    )
    grid = times(path, chosen.get("skip_type", "logSNR"), *ends, chosen["steps"])
    if "timesteps" in case:
        grid = case.array("timesteps")
    yield from sampled(case, case.mixture(case["mixture"], path), start(case), path, solver, grid)


FAMILIES = {"dpm_solver_v3": dpm_solver_v3}
