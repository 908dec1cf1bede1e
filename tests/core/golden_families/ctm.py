"""Family ctm_gamma: gamma sampling with the exact flow map of a single Gaussian."""

import torch
from golden_cases import Case, Checks, counted

from fewstep.flow_map import sample_jumps
from golden_families.anchored import recorded
from golden_families.paths import path_of
from golden_families.starts import start

# The official code jumps no lower than this, the sigma_min of its networks.
RHO_MIN = 0.002


def ctm_gamma(case: Case) -> Checks:
    """The loop runs over all but the last interval of `sigmas`; its last jump lands on its own target, without
    noise.
    """
    path, given = path_of(case), case["sample_kwargs"]
    gamma, sigmas = given["gamma"], given["sigmas"]
    sigmas = case.array(sigmas) if isinstance(sigmas, str) else torch.tensor(sigmas, dtype=torch.float64)
    grid = sigmas[:-1].clone()
    grid[-1] = (1 - gamma**2) ** 0.5 * (grid[-1] - RHO_MIN) + RHO_MIN
    world, calls = case.mixture(case["mixture"], path), []

    def jump(x, t, u):
        calls.append(t)
        return world.flow_map(x, t, u)

    yield "out", sample_jumps(jump, start(case), path, grid, gamma, None, recorded(case), RHO_MIN), case.array("out")
    if "nfe" in case:
        yield counted(case, len(calls))


FAMILIES = {"ctm_gamma": ctm_gamma}
