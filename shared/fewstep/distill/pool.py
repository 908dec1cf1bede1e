"""Teacher pairs (noise, end point) and trajectories: made during training and used more than once, or read from disk.

A trajectory costs the teacher many evaluations, so `PairPool` keeps what it made. A batch read from disk holds the same already:

    noise    (B, ...)     standard normal
    target   (B, ...)     the teacher's end point from it
    states   (B, m, ...)  its states at the m times of the manifest (optional; the ends of the trajectory may be among them)
    y, x0    (B, ...)     the anchor, the data the pair belongs to (both optional)

and every other key is a condition of the network under its own name. A batch without `noise` and `target` is one of data.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoise
from fewstep.distill.guidance import TeacherGuidance
from fewstep.generator import Generator, Prepared
from fewstep.paths import Path
from fewstep.sampling import Callback, sample
from fewstep.solvers.base import Row
from fewstep.train.shell import Batch


class Pairs(NamedTuple):
    """noise and the teacher's end point from it, the data x0 they belong to, conditions and anchor; all (B, ...)."""

    noise: Tensor
    target: Tensor
    x0: Tensor
    cond: Cond
    y: Tensor | None


class Trajectories(NamedTuple):
    """states: (B, n + 1, ...) of the teacher at the n + 1 times asked for, its start and its end point included; conditions, anchor."""

    states: Tensor
    cond: Cond
    y: Tensor | None


def stored_pairs(batch: Batch) -> Pairs | None:
    """The pairs of a batch read from disk; None for a batch of data."""
    if not {"noise", "target"} <= batch.keys():
        return None
    cond = {k: v for k, v in batch.items() if k not in ("noise", "target", "states", "y", "x0")}
    return Pairs(batch["noise"], batch["target"], batch.get("x0", batch["target"]), cond, batch.get("y"))


def stored_trajectories(batch: Batch, path: Path, times: Tensor, kept: Sequence[float]) -> Trajectories | None:
    """The states of a batch read from disk at `times` (start to clean end); None for a batch of data.

    Args:
        kept: the times of batch["states"], as its manifest names them.
    Raises:
        ValueError: `kept` does not belong to the states, or one of the times between the ends is not among them.
    """
    pairs = stored_pairs(batch)
    if pairs is None:
        return None
    held = batch["states"].shape[1] if "states" in batch else 0
    if held != len(kept):
        raise ValueError(f"this batch holds {held} states, the times given for them are {list(kept)}")
    states, close = [path.start(pairs.noise, pairs.y)], 1e-6 * (path.t_max - path.t_min)
    for t in times[1:-1].tolist():
        i = next((i for i, k in enumerate(kept) if abs(k - t) <= close), None)
        if i is None:
            raise ValueError(f"the student is evaluated at t = {t:g}, states are stored at {list(kept)}")
        states.append(batch["states"][:, i])
    return Trajectories(torch.stack([*states, pairs.target], 1), pairs.cond, pairs.y)


class PairPool(nn.Module):
    """A ring of the last `size` teacher pairs; each iteration adds `fresh` new ones and trains on a random batch of the ring.

    With size = 0 every batch is fresh; otherwise a pair is used about batch / fresh times, with fresh = 0 the first `size` pairs
    forever. The ring is part of the checkpoint, so that a resumed run continues bit for bit. Many processes share one ring: each makes
    its part of the new pairs, all get all of them.

    Args:
        size: pairs (or trajectories) kept.
        fresh: new pairs per iteration once the ring is full (before, whole batches are added).
        guidance: of the teacher; it is baked into the pairs.
    """

    def __init__(self, size: int = 0, fresh: int = 4, guidance: TeacherGuidance = TeacherGuidance()) -> None:
        super().__init__()
        self.filled: Tensor
        if size < 0 or fresh < 0:
            raise ValueError(f"PairPool needs size >= 0 and fresh >= 0, got {size} and {fresh}")
        self.size, self.fresh, self.guidance = size, fresh, guidance
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def draw(self, teacher: Generator, data: Prepared) -> Pairs:
        """Pairs for one batch of data; new ones are computed by the teacher without gradient."""
        v = self._draw(data, lambda part: self.make(teacher, part)._asdict())
        return Pairs(v["noise"], v["target"], v["x0"], _conditions(v), v.get("y"))

    def trajectories(self, teacher: Generator, data: Prepared, times: Tensor) -> Trajectories:
        """As `draw`, with the teacher's states at times: (n + 1,)."""
        v = self._draw(data, lambda part: self.follow(teacher, part, times)._asdict())
        return Trajectories(v["states"], _conditions(v), v.get("y"))

    @torch.no_grad()
    def make(self, teacher: Generator, data: Prepared) -> Pairs:
        """New pairs, from fresh noise."""
        noise, w = torch.randn_like(data.x0), self.guidance.draw(data.x0)
        end = self.guidance.generate(teacher, noise, data.cond, data.y, w)
        return Pairs(noise, end, data.x0, self.guidance.student_cond(data.cond, w), data.y)

    @torch.no_grad()
    def follow(self, teacher: Generator, data: Prepared, times: Tensor) -> Trajectories:
        """New trajectories, from fresh noise: the teacher's own solver and grid, with `times` put in where the grid lacks them."""
        path, keep = teacher.denoiser.path, _KeepAt(times)
        start = path.start(torch.randn_like(data.x0), data.y)
        denoise, cond = self.guided(teacher, data)
        grid = passing(teacher.grid(path, teacher.steps), times)
        sample(denoise, start, path, teacher.solver, grid, data.y, callbacks=[keep])
        return Trajectories(torch.stack([start, *keep.states], 1), cond, data.y)

    def guided(self, teacher: Generator, data: Prepared) -> tuple[Denoise, Cond]:
        """The guided teacher with these conditions, and what a student that is told the scale gets."""
        w = self.guidance.draw(data.x0)
        return self.guidance.teacher(teacher, data.cond, data.y, w), self.guidance.student_cond(data.cond, w)

    def _draw(self, data: Prepared, make: Callable[[Prepared], dict]) -> dict[str, Tensor]:
        """A random batch of the ring, as columns, after the new rows were put into it."""
        n = len(data.x0)
        if self.size == 0:
            return _columns(make(data))
        if self.size < n:
            raise ValueError(f"PairPool: size {self.size} is smaller than the batch of {n}")
        count = int(self.filled)
        take = n if count < self.size else min(self.fresh, n)
        if take:
            part = Prepared(data.x0[:take], {k: v[:take] for k, v in data.cond.items()}, _head(data.y, take))
            rows = of_all_ranks(_columns(make(part)))
            take = len(next(iter(rows.values())))
            self._put(rows, count, take)
        chosen = torch.randperm(min(count + take, self.size), device=data.x0.device)[:n]
        return {k.removeprefix("ring_"): v[chosen] for k, v in self.named_buffers() if k.startswith("ring_")}

    def _put(self, columns: dict[str, Tensor], count: int, rows: int) -> None:
        for name, values in columns.items():
            if not hasattr(self, f"ring_{name}"):
                ring = torch.zeros(self.size, *values.shape[1:], dtype=values.dtype, device=values.device)
                self.register_buffer(f"ring_{name}", ring)
            where = torch.arange(count, count + rows, device=values.device) % self.size
            getattr(self, f"ring_{name}")[where] = values.detach()
        self.filled += rows

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:  # noqa: ANN001, ANN002, ANN003
        """The ring's shapes are known only from data: make room for what a checkpoint holds."""
        for key, value in state_dict.items():
            if key.startswith(f"{prefix}ring_") and not hasattr(self, key.removeprefix(prefix)):
                self.register_buffer(key.removeprefix(prefix), torch.zeros_like(value, device=self.filled.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def pairs_of(batch: Batch, pool: PairPool | None, teacher: Generator, student: Generator) -> Pairs | None:
    """The pairs that a batch from disk holds, for a batch of data those of the pool, where there is one."""
    stored = stored_pairs(batch)
    return stored if stored is not None or pool is None else pool.draw(teacher, student.prepare(batch))


def of_all_ranks(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of all processes, in the order of their ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return columns
    gathered = {}
    for name, v in columns.items():
        parts = [torch.empty_like(v, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, v.contiguous())
        gathered[name] = torch.cat(parts)
    return gathered


def passing(grid: Tensor, times: Tensor) -> Tensor:
    """The grid's times between the ends of `times`, and `times` themselves; times that differ by rounding are one."""
    keys, close = times.tolist(), 1e-9 * (times[0] - times[-1]).item()
    between = [t for t in grid.tolist() if keys[-1] < t < keys[0] and min(abs(t - k) for k in keys) > close]
    return torch.tensor(sorted([*keys, *between], reverse=True), dtype=torch.float64)


class _KeepAt(Callback):
    """Keeps the states at some times of the grid."""

    def __init__(self, times: Tensor) -> None:
        self.times = set(times.tolist())
        self.states: list[Tensor] = []

    def on_step(self, x: Tensor, done: int, total: int, row: Row) -> bool:
        if row.s in self.times:
            self.states.append(x.clone())
        return False


def _columns(rows: dict) -> dict[str, Tensor]:
    """Tensors by name: conditions as cond_NAME, no anchor where there is none."""
    plain = {k: v for k, v in rows.items() if isinstance(v, Tensor)}
    return plain | {f"cond_{k}": v for k, v in rows["cond"].items()}


def _conditions(columns: dict[str, Tensor]) -> Cond:
    return {k.removeprefix("cond_"): v for k, v in columns.items() if k.startswith("cond_")}


def _head(v: Tensor | None, n: int) -> Tensor | None:
    return None if v is None else v[:n]
