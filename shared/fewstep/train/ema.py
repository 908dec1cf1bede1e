"""Exponential moving average of the student alone (teacher, critics and counters are not averaged)."""

import copy
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fewstep.train.shell import Shell


class EMA(L.Callback):
    """theta_ema <- d theta_ema + (1 - d) theta after every iteration that changes it; validation and artifacts use the average.

    Buffers are copied. Args:
        decay: d in [0, 1). The first iterations use min(d, (1 + n)/(10 + n)), so that short runs forget their start.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must be in [0, 1), not {decay}")
        self.decay = decay
        self._average: nn.Module | None = None
        self._state: dict[str, torch.Tensor] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Shell)
        if stage == "fit":
            self._average = copy.deepcopy(pl_module.student).requires_grad_(False).eval()
            # Hidden from Lightning: a registered submodule would enter the checkpoint and DDP twice.
            object.__setattr__(pl_module, "averaged", self._average)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Shell)
        assert self._average is not None
        if self._state is not None:
            self._average.load_state_dict(self._state)
        self._average.to(pl_module.device)
        self._pairs = [
            [list(f(m)) for m in (self._average, pl_module.student)] for f in (nn.Module.parameters, nn.Module.buffers)
        ]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Shell)
        if not pl_module.moved:
            return
        n = pl_module.done
        (average, current), (buffers, now) = self._pairs
        get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))(average, current, n)
        for buffer, value in zip(buffers, now, strict=True):
            buffer.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._average is None else {"average": self._average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict.get("average")
