"""Exponential moving average of the student alone (teacher, critics and counters are not averaged)."""

from typing import Any

import lightning as L
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fewstep.train.shell import Shell


class EMA(L.Callback):
    """theta_ema <- d theta_ema + (1 - d) theta after every iteration; validation and artifacts use the average.

    Args:
        decay: d in [0, 1). The first iterations use min(d, (1 + n)/(10 + n)), so that short runs forget their start.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must be in [0, 1), not {decay}")
        self.decay = decay
        self._model: AveragedModel | None = None
        self._state: dict[str, torch.Tensor] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Shell)
        if stage == "fit":
            self._model = AveragedModel(pl_module.student).requires_grad_(False)
            # Hidden from Lightning: a registered submodule would enter the checkpoint and DDP twice.
            object.__setattr__(pl_module, "averaged", self._model.module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._model is not None
        if self._state is not None:
            self._model.load_state_dict(self._state)
        self._model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Shell) and self._model is not None
        n = pl_module.done
        self._model.multi_avg_fn = get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))
        self._model.update_parameters(pl_module.student)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._model is None else {"average": self._model.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict.get("average")
