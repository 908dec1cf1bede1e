"""Teacher pairs (noise, end point) made during training and used more than once, because a teacher costs many evaluations."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.generator import Generator, Prepared


class Pairs(NamedTuple):
    """noise and the teacher's end point from it, the data x0 they belong to, conditions and anchor; all (B, ...)."""

    noise: Tensor
    target: Tensor
    x0: Tensor
    cond: Cond
    y: Tensor | None


class PairPool(nn.Module):
    """A ring of the last `size` teacher pairs; each iteration adds `fresh` new ones and trains on a random batch of the ring.

    With size = 0 every batch is fresh; otherwise a pair is used about batch / fresh times. The ring is part of the
    checkpoint, so that a resumed run continues bit for bit.

    Args:
        size: pairs kept.
        fresh: new pairs per iteration once the ring is full (before, whole batches are added).
    """

    def __init__(self, size: int = 0, fresh: int = 4) -> None:
        super().__init__()
        self.filled: Tensor
        if size < 0 or fresh < 1:
            raise ValueError(f"PairPool needs size >= 0 and fresh >= 1, got {size} and {fresh}")
        self.size, self.fresh = size, fresh
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def draw(self, teacher: Generator, data: Prepared, iteration: int) -> Pairs:
        """Pairs for one batch of data; new ones are computed by the teacher without gradient."""
        n = len(data.x0)
        if self.size == 0:
            return self._make(teacher, data)
        if self.size < n:
            raise ValueError(f"PairPool: size {self.size} is smaller than the batch of {n}")
        count = int(self.filled)
        take = n if count < self.size else min(self.fresh, n)
        self._put(
            self._make(
                teacher, Prepared(data.x0[:take], {k: v[:take] for k, v in data.cond.items()}, _head(data.y, take))
            ),
            count,
        )
        chosen = torch.randperm(min(count + take, self.size), device=data.x0.device)[:n]
        ring = {k.removeprefix("ring_"): v[chosen] for k, v in self.named_buffers() if k.startswith("ring_")}
        cond = {k.removeprefix("cond_"): v for k, v in ring.items() if k.startswith("cond_")}
        return Pairs(ring["noise"], ring["target"], ring["x0"], cond, ring.get("y"))

    @staticmethod
    @torch.no_grad()
    def _make(teacher: Generator, data: Prepared) -> Pairs:
        noise = torch.randn_like(data.x0)
        return Pairs(noise, teacher.generate(noise, data.cond, data.y), data.x0, data.cond, data.y)

    def _put(self, pairs: Pairs, count: int) -> None:
        columns = {"noise": pairs.noise, "target": pairs.target, "x0": pairs.x0} | (
            {} if pairs.y is None else {"y": pairs.y}
        )
        columns |= {f"cond_{k}": v for k, v in pairs.cond.items()}
        where = torch.arange(count, count + len(pairs.noise), device=pairs.noise.device) % self.size
        for name, values in columns.items():
            if not hasattr(self, f"ring_{name}"):
                ring = torch.zeros(self.size, *values.shape[1:], dtype=values.dtype, device=values.device)
                self.register_buffer(f"ring_{name}", ring)
            getattr(self, f"ring_{name}")[where] = values.detach()
        self.filled += len(where)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:  # noqa: ANN001, ANN002, ANN003
        """The ring's shapes are known only from data: make room for what a checkpoint holds."""
        for key, value in state_dict.items():
            if key.startswith(f"{prefix}ring_") and not hasattr(self, key.removeprefix(prefix)):
                self.register_buffer(key.removeprefix(prefix), torch.zeros_like(value, device=self.filled.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _head(v: Tensor | None, n: int) -> Tensor | None:
    return None if v is None else v[:n]
