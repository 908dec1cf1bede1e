"""Family unipc: the official multistep UniPC; ends, time grids and thresholding are those of DPM-Solver."""

from golden_cases import Counting, counted

from fewstep.sampling import sample
from fewstep.solvers.unipc import UniPC
from golden_families.dpm_solver import ends, nodes, thresholded
from golden_families.paths import path_of
from golden_families.starts import start


def unipc(case):
    given, chosen, path = case["sample_kwargs"], case.get("solver") or {}, path_of(case)
    variant = chosen.get("variant", "bh1")
    solver = UniPC(
        p=given.get("order", 2),
        uses="x0" if chosen.get("algorithm_type", "data_prediction") == "data_prediction" else "eps",
        b="vary_official" if variant == "vary_coeff" else variant,
        tail=given.get("lower_order_final", True),
    )
    grid = nodes(path, given.get("skip_type", "time_uniform"), *ends(case, path), given["steps"])
    counting = Counting(case.mixture(case["mixture"], path))
    clipped = thresholded(case, counting, path)
    x = sample(clipped if solver.uses == "x0" else counting, start(case), path, solver, grid)
    if given.get("denoise_to_zero", False):
        x = clipped(x, grid[-1].item()).x0
    yield "out", x, case.array("out")
    if "nfe" in case:
        yield counted(case, counting.calls)


FAMILIES = {"unipc": unipc}
