"""Family dpm_solver_v3: statistics per coordinate at nodes even in lambda; `timesteps` are the times snapped to them."""

import torch
from golden_cases import sampled

from fewstep.solvers.dpm_v3 import DPMSolverV3
from fewstep.solvers.ems import EMS, data_form
from golden_families.starts import start
from golden_families.unipc import path_of, times


def statistics(case, path, ends):
    first, last = path.log_snr(torch.tensor(ends, dtype=torch.float64)).tolist()
    l, s, b = (case.array(f"{case['ems']}/{name}") for name in "lsb")
    return data_form(first, last, len(l) - 1) if case["solver"].get("degenerated", False) else EMS(first, last, l, s, b)


def dpm_solver_v3(case):
    given, chosen = case["sample_kwargs"], case["solver"]
    path = path_of(case)
    ends = chosen.get("t_start", path.t_max), chosen.get("t_end", 1e-3)
    solver = DPMSolverV3(
        statistics(case, path, ends),
        p=given.get("order", 2),
        p_pseudo=given.get("p_pseudo", False),
        corrector=given.get("use_corrector", False),
        c_pseudo=given.get("c_pseudo", False),
        tail=given.get("lower_order_final", True),
    )
    grid = times(path, chosen.get("skip_type", "logSNR"), chosen["steps"], *ends)
    if "timesteps" in case:
        grid = case.array("timesteps")
    yield from sampled(case, case.mixture(case["mixture"], path), start(case), path, solver, grid)


FAMILIES = {"dpm_solver_v3": dpm_solver_v3}
