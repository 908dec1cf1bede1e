"""BOSS redress: choose the K times whose Euler steps leave the teacher least, then straighten it there alone (arXiv:2312.16414).

    times     K of the `candidates` steps with the least total cost of one Euler step between them (search/boss.py)
    redress   chord regression (distill/key_points.py) between the chosen times, on the teacher's trajectories

The K Euler (DDIM) steps of the student then end where the teacher's trajectory does. On any path.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.distill.key_points import KeyPoints
from fewstep.distill.pool import stored_pairs
from fewstep.generator import Generator, Prepared
from fewstep.grids import Explicit
from fewstep.search.boss import boss_steps, step_costs
from fewstep.search.starts import Starts
from fewstep.search.trajectories import record
from fewstep.solvers import DDIM
from fewstep.train.shell import Batch, Terms


class Redress(KeyPoints):
    """Key points at BOSS's times, found at the first iteration from as many starts as its batch has.

    The chosen times become the student's grid, and are part of the checkpoint.

    Args:
        candidates: Euler steps of the teacher, on its grid, among whose times are chosen. Where batches from disk hold states it is
            their times that are chosen from.
    """

    chosen: Tensor

    def __init__(self, teacher: Generator, iterations: int, candidates: int = 100, **kwargs: Any) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.candidates = candidates
        # Indices among the candidates; all 0 before the search.
        self.register_buffer("chosen", torch.zeros(self.student.steps + 1, dtype=torch.long))
        self.register_load_state_dict_post_hook(_use_times)

    @property
    def choices(self) -> Tensor:
        """(n + 1,) float64 times to choose from, both ends included."""
        path = self.teacher.denoiser.path
        if not self.stored:
            return self.teacher.grid(path, self.candidates)
        start, *_, end = self.teacher.grid(path, self.teacher.steps).tolist()
        return torch.tensor([start, *(t for t in self.stored if end < t < start), end], dtype=torch.float64)

    def loss(self, batch: Batch) -> Terms:
        if not self.chosen.any():
            self.search(batch)
        return super().loss(batch)

    def search(self, batch: Batch) -> float:
        """Choose the times with a batch's conditions; the cost of the K steps.

        Raises:
            ValueError: fewer candidate steps than the student has.
        """
        stored = stored_pairs(batch)
        data = self.student.prepare(batch) if stored is None else Prepared(stored.x0, stored.cond, stored.y)
        noise = torch.randn_like(data.x0) if stored is None else stored.noise
        path, (denoise, _) = self.teacher.denoiser.path, self.pool.guided(self.teacher, data)
        x = path.start(noise, data.y)
        costs = step_costs(path, [record(Starts(denoise, x, x, data.y), path, DDIM(), self.choices)])
        nodes, cost = boss_steps(costs, self.student.steps)
        self.chosen.copy_(torch.tensor(nodes))
        if torch.distributed.is_initialized():  # every rank has its own batch, all must walk the same times
            torch.distributed.broadcast(self.chosen, 0)
        _use_times(self)
        return cost


def _use_times(module: nn.Module, keys: Any = None) -> None:
    """Give the chosen times to the student and its average."""
    assert isinstance(module, Redress)
    if module.chosen.any():
        grid = Explicit(tuple(module.choices[module.chosen.cpu()].tolist()))
        for model in (module.student, module.averaged):
            if isinstance(model, Generator):
                model.grid = grid
