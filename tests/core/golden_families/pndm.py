"""Family pndm: luping-liu/PNDM. Its states at label t have alpha_bar[floor(t) + 1], half labels included."""

from dataclasses import dataclass

import torch
from golden_cases import sampled

from fewstep.paths.base import Path
from fewstep.paths.betas import Betas
from fewstep.sampling import Callback, sample
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.pndm import PLMS, PNDM
from golden_families.paths import betas_of
from golden_families.starts import start


@dataclass(frozen=True)
class Labelled(Path):
    """a^2 = alpha_bar[max(floor(t) + shift, 0)]: a discrete process by its labels, constant between them."""

    betas: Betas
    shift: int = 0

    @property
    def t_max(self):
        return len(self.betas()) - 1.0 - self.shift

    def schedule(self, t):
        bar = (1 - self.betas()).cumprod(0)[(t.floor() + self.shift).nan_to_num(0.0).clamp(min=0).long()]
        return bar.sqrt(), torch.zeros_like(t), (1 - bar).sqrt()


class States(Callback):
    """Every state, the first included."""

    def __init__(self, x):
        self.xs = [x]

    def on_step(self, x, done, total, row):
        self.xs.append(x)
        return False


def with_states(case, path, solver, grid):
    """Out, evaluations and the states in between."""
    world, x = case.mixture(case["mixture"], path), start(case)
    yield from sampled(case, world, x, path, solver, grid)
    if "traj" in case:
        states = States(x)
        sample(world, x, path, solver, grid, callbacks=[states])
        yield "traj", torch.stack(states.xs), case.array("traj")


def pndm(case):
    solver = {1: DDIM(), 2: PLMS(2), 4: PNDM()}[case["sample_kwargs"]["order"]]
    grid = torch.tensor([*case["sequence"], case["sequence_next"][-1]], dtype=torch.float64)
    yield from with_states(case, Labelled(betas_of(case["betas"]), 1), solver, grid)


FAMILIES = {"pndm": pndm}
