"""The network that targets are computed with: the student itself, or its exponential moving average."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


class Target(nn.Module, Generic[M]):
    """theta^- <- mu theta^- + (1 - mu) theta after every step (`update`); mu = 0 is the student itself, without a copy.

    Use it under torch.no_grad() or detach what it returns. It is part of checkpoints: a resumed run has the same targets. It is not the
    average that is validated and saved (train/ema.py): the two have different jobs and decays.
    """

    def __init__(self, student: M, mu: float = 0.0) -> None:
        super().__init__()
        if not 0 <= mu < 1:
            raise ValueError(f"the decay of a target is in [0, 1), not {mu}")
        self.mu = mu
        self._online = [student]  # in a list: it is registered elsewhere
        self.average = copy.deepcopy(student).requires_grad_(False) if mu > 0 else None

    @property
    def net(self) -> M:
        """What targets are computed with."""
        return self._online[0] if self.average is None else self.average

    @torch.no_grad()
    def update(self) -> None:
        """One step of the average; buffers are copied."""
        if self.average is None:
            return
        online = self._online[0]
        get_ema_multi_avg_fn(self.mu)(list(self.average.parameters()), list(online.parameters()), 0)  # pyright: ignore
        for buffer, value in zip(self.average.buffers(), online.buffers(), strict=True):
            buffer.copy_(value)
