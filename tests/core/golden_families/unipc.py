"""Family unipc: the official multistep UniPC, and what DPM-type cases have in common: their paths and time grids."""

import torch
from golden_cases import Counting, counted

from fewstep.paths import EDM, VP, Cosine
from fewstep.paths.betas import CosineBetas, LinearBetas, ScaledLinearBetas
from fewstep.paths.tabulated import DiscreteVP
from fewstep.sampling import sample
from fewstep.solvers.unipc import UniPC
from golden_families.starts import start


def betas_of(given):
    n = given.get("n", 1000)
    if given["kind"] == "cosine_improved_ddpm":
        return CosineBetas(n, given.get("s", 0.008), given.get("max_beta", 0.999))
    return {"linspace": LinearBetas, "scaled_linear": ScaledLinearBetas}[given["kind"]](n, given["start"], given["end"])


def path_of(case):
    return {
        "vp_linear": lambda: VP(case.get("beta_0", 0.1), case.get("beta_1", 20.0)),
        "vp_cosine": lambda: Cosine(),
        "vp_discrete": lambda: DiscreteVP(betas_of(case["betas"])),
        "edm": lambda: EDM(),
    }[case["path"]]()


def times(path, skip_type, n, hi, lo):
    """(n + 1,) times of the official get_time_steps."""

    def power(p, first, last):
        return torch.linspace(first ** (1 / p), last ** (1 / p), n + 1, dtype=torch.float64) ** p

    lam = path.log_snr(torch.tensor([hi, lo], dtype=torch.float64))
    first, last = (-lam).exp().tolist()
    return {
        "time_uniform": lambda: power(1, hi, lo),
        "time_quadratic": lambda: power(2, hi, lo),
        "logSNR": lambda: path.time_of_log_snr(torch.linspace(*lam.tolist(), n + 1, dtype=torch.float64)),
        "edm": lambda: path.time_of_log_snr(-power(7, first, last).log()),
    }[skip_type]()


def unipc(case):
    given, chosen = case["sample_kwargs"], case.get("solver") or {}
    path = path_of(case)
    grid = times(
        path,
        given.get("skip_type", "time_uniform"),
        given["steps"],
        given.get("t_start", path.t_max),
        given.get("t_end", 1e-3),
    )
    solver = UniPC(
        p=given.get("order", 2),
        uses="x0" if chosen.get("algorithm_type", "data_prediction") == "data_prediction" else "eps",
        b={"vary_coeff": "vary_official"}.get(variant := chosen.get("variant", "bh1"), variant),
        tail=given.get("lower_order_final", True),
    )
    counting = Counting(case.mixture(case["mixture"], path))
    x = sample(counting, start(case), path, solver, grid)
    if given.get("denoise_to_zero", False):
        x = counting(x, grid[-1].item()).x0
    yield "out", x, case.array("out")
    yield counted(case, counting.calls)


FAMILIES = {"unipc": unipc}
