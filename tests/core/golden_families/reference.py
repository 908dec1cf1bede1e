"""Family reference_ode: the probability flow integrated to high accuracy, met by our fourth-order solver on a fine grid."""

import torch
from golden_cases import sample

from fewstep.solvers.unipc import UniPC
from golden_families.paths import path_of
from golden_families.starts import start

STEPS = 2000


def reference_ode(case):
    path = path_of(case)
    hi, lo = case["t_start"], case["t_end"]
    ends = path.log_snr(torch.tensor([hi, lo], dtype=torch.float64)).clamp(-12, 12)  # a rectified flow starts at -inf
    grid = path.time_of_log_snr(torch.linspace(*ends.tolist(), STEPS + 1, dtype=torch.float64))
    grid[0], grid[-1] = hi, lo
    solver = UniPC(p=3, b="vary", tail=False)
    yield "out", sample(case.mixture(case["mixture"], path), start(case), path, solver, grid), case.array("out")


FAMILIES = {"reference_ode": reference_ode}
