"""Families heavy_ball (sWizad/momentum-diffusion) and bdia_ddim (guoqiang-zhang-x/BDIA): both end at alpha_bar[0]."""

import torch

from fewstep.solvers.bdia import BDIA
from fewstep.solvers.heavy_ball import GHVB, HeavyBall, Nesterov
from golden_families.paths import betas_of
from golden_families.pndm import Labelled, with_states

SCHEDULERS = {"GHVBScheduler": GHVB, "PLMSWithHBScheduler": HeavyBall, "PLMSWithNTScheduler": Nesterov}


def on_labels(case, solver):
    """The last step leads to a negative label, where alpha_bar is that of label 0."""
    grid = torch.tensor([*case["timesteps"], case.get("timestep_next", [-1])[-1]], dtype=torch.float64)
    yield from with_states(case, Labelled(betas_of(case["betas"])), solver, grid)


def heavy_ball(case):
    return on_labels(case, SCHEDULERS[case["function"].split(".")[0]](float(case["sample_kwargs"].get("order", 1))))


def bdia_ddim(case):
    return on_labels(case, BDIA(case["sample_kwargs"].get("gamma", 0.5)))


FAMILIES = {"heavy_ball": heavy_ball, "bdia_ddim": bdia_ddim}
