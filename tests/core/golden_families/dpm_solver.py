"""Families dpm_solver and dpm_solver_cfg: DPM_Solver.sample and .inverse of the official code."""

import torch
from golden_cases import Counting, counted

from fewstep.grids.fast import fast_orders
from fewstep.guidance.cfg import Guided
from fewstep.guidance.thresholding import DynamicThreshold, Thresholded
from fewstep.paths.tabulated import DiscreteVP
from fewstep.sampling import Callback, sample
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.dpm_adaptive import DPMAdaptive
from fewstep.solvers.dpm_fast import DPMFast
from fewstep.solvers.dpm_multistep import DPMMultistep
from golden_families.paths import path_of
from golden_families.starts import start


class Trajectory(Callback):
    """The state after each step."""

    def __init__(self):
        self.x = []

    def on_step(self, x, done, total, row):
        self.x.append(x)
        return False


def nodes(path, skip, hi, lo, n):
    """n + 1 times from hi to lo, evenly spaced in t, sqrt(t) or lambda (get_time_steps)."""
    ends = torch.tensor([hi, lo], dtype=torch.float64)
    if skip == "logSNR":
        lam = path.log_snr(ends)
        t = path.time_of_log_snr(torch.linspace(*lam.tolist(), n + 1, dtype=torch.float64))
        t[0], t[-1] = hi, lo
        return t
    power = {"time_uniform": 1, "time_quadratic": 2}[skip]
    return torch.linspace(*(ends ** (1 / power)).tolist(), n + 1, dtype=torch.float64) ** power


def singlestep_grid(path, skip, hi, lo, n, orders):
    """Outer times, and between each two of them as many steps of the same kind as the order of that step."""
    if skip == "logSNR" or n is None:
        outer = nodes(path, skip, hi, lo, len(orders))
    else:
        outer = nodes(path, skip, hi, lo, n)[torch.tensor([0, *orders]).cumsum(0)]
    pieces = [
        nodes(path, skip, *ends, k)[:-1]
        for *ends, k in zip(outer[:-1].tolist(), outer[1:].tolist(), orders, strict=True)
    ]
    return torch.cat([*pieces, outer[-1:]])


def form(case):
    """The half of the estimate and the rule of the differences."""
    given = case.get("solver") or {}
    uses = "x0" if given.get("algorithm_type", "dpmsolver++") == "dpmsolver++" else "eps"
    rule = "taylor" if case.get("sample_kwargs", {}).get("solver_type", "dpmsolver") == "taylor" else "midpoint"
    return {"uses": uses, "rule": rule}


def solver_and_grid(case, path, hi, lo):
    given = case["sample_kwargs"]
    method, k, n = given.get("method", "multistep"), given.get("order", 2), given.get("steps", 20)
    skip = given.get("skip_type", "time_uniform")
    if method == "multistep":
        tail = (2, 1) if given.get("lower_order_final", True) else ()
        return DPMMultistep(k, **form(case), tail=tail, below=10), nodes(path, skip, hi, lo, n)
    if method == "singlestep":
        return DPMFast(k, **form(case)), singlestep_grid(path, skip, hi, lo, n, fast_orders(k, n))
    if method == "singlestep_fixed":
        return DPMFast(k, **form(case), orders="fixed"), singlestep_grid(path, skip, hi, lo, None, [k] * (n // k))
    raise ValueError(f"unknown method {method}")


def ends(case, path):
    """Start and end of sampling or of its inverse. The clean one is 1/N, N the official count of times: the knots kept of a table."""
    given, clean = case["sample_kwargs"], 1 / len(path._knots) if isinstance(path, DiscreteVP) else 1e-3
    first, last = (clean, path.t_max) if case["function"].endswith("inverse") else (path.t_max, clean)
    return given.get("t_start") or first, given.get("t_end") or last


def thresholded(case, denoise, path):
    """The data form sees clipped estimates; the noise form clips in denoise_to_zero alone."""
    given = case.get("solver") or {}
    if given.get("correcting_x0_fn") != "dynamic_thresholding":
        return denoise
    clip = DynamicThreshold(given.get("dynamic_thresholding_ratio", 0.995), given.get("thresholding_max_val", 1.0))
    return Thresholded(denoise, clip, path)


def run(case, world, path):
    given, (t, s) = case["sample_kwargs"], ends(case, path)
    counting, trajectory, x = Counting(world), Trajectory(), start(case)
    clipped = thresholded(case, counting, path)
    denoise = clipped if form(case)["uses"] == "x0" else counting
    if given.get("method", "multistep") == "adaptive":
        tolerances = {k: given[k] for k in ("atol", "rtol") if k in given}
        x = DPMAdaptive(given.get("order", 2), **form(case), **tolerances).sample(denoise, x, path, t, s).x
    else:
        x = sample(denoise, x, path, *solver_and_grid(case, path, t, s), callbacks=[trajectory])
    if given.get("denoise_to_zero", False):
        clean = torch.tensor([s, path.t_min], dtype=torch.float64)
        x = sample(clipped, x, path, DDIM(), clean, callbacks=[trajectory])
    yield "out", x, case.array("out")
    if "traj" in case and trajectory.x:
        official = case.array("traj")
        yield "traj", torch.stack(trajectory.x[-len(official) :]), official[-len(trajectory.x) :]
    if "nfe" in case:
        yield counted(case, counting.calls)


def dpm_solver(case):
    path = path_of(case)
    yield from run(case, case.mixture(case["mixture"], path), path)


def dpm_solver_cfg(case):
    path = path_of(case)
    branches = (case.mixture(case[f"mixture_{which}"], path) for which in ("cond", "uncond"))
    yield from run(case, Guided(*branches, case["guidance_scale"]), path)


FAMILIES = {"dpm_solver": dpm_solver, "dpm_solver_cfg": dpm_solver_cfg}
