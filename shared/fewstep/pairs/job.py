"""One job of making teacher pairs: what is asked for, and the samples of it.

Sample i is a pure function of (model, job, i): its noise and drawn conditions come from (seed, i), and it is always computed in the same
batch of the same shard.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from fewstep.artifacts import describe
from fewstep.generator import Generator, Prepared
from fewstep.pairs.folder import PairsError
from fewstep.sampling import Callback, sample
from fewstep.solvers.base import Row, Solver
from fewstep.train.shell import iteration_seed


@dataclass(frozen=True)
class Job:
    """What is made.

    Args:
        n: how many samples.
        steps, solver: of the teacher; the model's own where not given.
        states: which states are kept, by number of finished steps (0 is the start); or "all".
        cfg: guidance scale of the teacher, 1 is none.
        shape: of one state, for models that do not know it when no data batch is given.
        shard_size: samples per file; batch_size: samples computed together.
    """

    n: int
    seed: int = 0
    steps: int | None = None
    solver: Solver | None = None
    states: tuple[int, ...] | Literal["all"] = ()
    cfg: float = 1.0
    shape: tuple[int, ...] | None = None
    shard_size: int = 1024
    batch_size: int = 64

    def __post_init__(self) -> None:
        if min(self.n, self.shard_size, self.batch_size, 1 if self.steps is None else self.steps) < 1:
            raise PairsError("the number of samples, steps, shard and batch size must be at least 1")
        if self.states != "all" and list(self.states) != sorted(set(self.states)):
            raise PairsError(f"states are step numbers in rising order, not {list(self.states)}")

    def shard(self, k: int) -> range:
        """The samples of shard k."""
        return range(k * self.shard_size, min((k + 1) * self.shard_size, self.n))

    def batches(self, k: int) -> list[range]:
        """The same in the parts that are computed together."""
        index = self.shard(k)
        return [index[at : at + self.batch_size] for at in range(0, len(index), self.batch_size)]


class Teacher:
    """A model with the settings of a job: makes the columns of any samples."""

    def __init__(self, model: Generator, job: Job, batch: Mapping[str, Tensor] | None = None) -> None:
        """batch: see `make.make_pairs`.

        Raises:
            PairsError: the job and the model do not fit.
        """
        self.model, self.job, self.batch = model.requires_grad_(False).eval(), job, batch
        self.like = next(model.parameters())
        self.solver, steps = job.solver or model.solver, job.steps or model.steps
        self.grid = model.grid(model.denoiser.path, steps)
        self.own = type(model).generate is not Generator.generate  # samples in a way of its own
        if self.own and (job.solver is not None or job.states or job.cfg != 1.0):
            raise PairsError(f"{type(model).__name__} samples in its own way: no other solver, states or guidance")
        if batch is not None and min((len(v) if v.ndim else 0 for v in batch.values()), default=0) < 1:
            raise PairsError("the data batch is empty")
        data = self._data(range(1))
        shape = job.shape or model.shape if data is None else tuple(data.x0.shape[1:])
        if shape is None:
            raise PairsError(f"{type(model).__name__} does not know its shape: give it, or a data batch")
        self.shape = shape
        rows = () if self.own else self.solver.plan(model.denoiser.path, self.grid)
        nodes = [self.grid[0].item(), *(r.s for r in rows if r.last)]
        self.kept = tuple(range(len(nodes))) if job.states == "all" else job.states
        if self.kept and not 0 <= self.kept[0] <= self.kept[-1] < len(nodes):
            raise PairsError(f"states are numbered 0 to {len(nodes) - 1}, not {list(self.kept)}")
        self.times = [nodes[k] for k in self.kept]
        self.ends = bool(self.kept) and self.kept[-1] == len(nodes) - 1  # the last state is the end point

    def describe(self) -> dict[str, Any]:
        """What decides about the samples, in JSON."""
        job = self.job
        return {
            "model": describe(self.model),
            "weights": digest(self.model.state_dict()),
            "solver": describe(self.solver),
            "grid": self.grid.tolist(),
            "cfg": job.cfg,
            "batch": None if self.batch is None else digest(self.batch),
            "shape": list(self.shape),
            "seed": job.seed,
            "n": job.n,
            "shard_size": job.shard_size,
            "batch_size": job.batch_size,
            "states": list(self.kept),
            "times": self.times,
        }

    @torch.no_grad()
    def columns(self, index: range) -> dict[str, Tensor]:
        """These samples as columns (B, ...) on the CPU."""
        draws = [torch.Generator().manual_seed(iteration_seed(self.job.seed, -3, i)) for i in index]
        data = self._data(index)
        noise = torch.stack([torch.randn(*self.shape, generator=g) for g in draws]).to(self.like)
        if data is None:
            drawn = [self.model.draw_conditions(g) for g in draws]
            cond = {k: torch.stack([d[k] for d in drawn]).to(self.like.device) for k in drawn[0]}
            data = Prepared(noise, cond, None)
        states, end = self._follow(noise, data, draws[0])
        made = (
            {"noise": noise} | ({} if states is None else {"states": states}) | ({} if self.ends else {"target": end})
        )
        made |= {} if self.batch is None else {"x0": data.x0}
        made |= {} if data.y is None else {"y": data.y}
        taken = sorted({"noise", "states", "target", "x0", "y"} & data.cond.keys())
        if taken:
            raise PairsError(
                f"the condition `{taken[0]}` of {type(self.model).__name__} has the name of another column"
            )
        return {k: v.detach().cpu() for k, v in (made | dict(data.cond)).items()}

    def _data(self, index: range) -> Prepared | None:
        if self.batch is None:
            return None
        items = torch.tensor(index) % min(len(v) for v in self.batch.values())
        try:
            return self.model.prepare({k: v[items].to(self.like.device) for k, v in self.batch.items()})
        except KeyError as err:
            raise PairsError(f"the data batch has no tensor {err}; it has {', '.join(sorted(self.batch))}") from err

    def _follow(self, noise: Tensor, data: Prepared, generator: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """(the states that are kept (B, m, ...), the end point (B, ...))."""
        model, cond, y = self.model, data.cond, data.y
        if self.own:
            return None, model.generate(noise, cond, y, self.job.steps, generator=generator)
        path = model.denoiser.path
        start, keep = model.begin(noise, y, float(self.grid[0])), _Keep(self.kept)
        end = sample(
            model.bind(cond, y, self.job.cfg),
            start,
            path,
            self.solver,
            self.grid,
            y,
            generator,
            [keep] if self.kept else [],
        )
        states = [start, *keep.states] if 0 in self.kept else keep.states
        return torch.stack(states, 1) if states else None, end


class _Keep(Callback):
    """Keeps the states after some numbers of steps."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps = steps
        self.states: list[Tensor] = []

    def on_step(self, x: Tensor, done: int, total: int, row: Row) -> bool:
        if done in self.steps:
            self.states.append(x.clone())
        return False


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(to_bytes({name: tensors[name].detach().cpu().contiguous()}))
    return total.hexdigest()
