"""What a run leaves behind: `last.ckpt` to resume from, and the artifacts `last/` and `best/`."""

import os
import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch.distributed.tensor import DTensor

from fewstep.artifacts import save
from fewstep.train.shell import Shell


class Checkpoints(L.Callback):
    """Write `<folder>/last.ckpt` every `every` iterations, and artifacts: `best/` at each new best validation, `last/` at the end.

    Everything appears whole or not at all (written under a temporary name, then renamed).

    Args:
        folder: of the run; the trainer's default root where not given.
        every: iterations between checkpoints.
        monitor, mode: the validation figure (as logged, e.g. "val/agreement") that decides `best/`; none keeps only `last/`.
    """

    def __init__(
        self,
        folder: str | None = None,
        every: int = 500,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
    ) -> None:
        if every < 1:
            raise ValueError(f"Checkpoints: every must be at least 1 iteration, not {every}")
        self.folder, self.every, self.monitor, self.mode = folder, every, monitor, mode
        self.best: float | None = None
        self._before, self._since = 0.0, time.process_time()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.process_time()

    def _spent(self) -> float:
        """CPU seconds of this process since the fit began, and of the runs it resumes."""
        return self._before + time.process_time() - self._since

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(self.folder or trainer.default_root_dir)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Shell)
        if pl_module.done % self.every == 0 or pl_module.done == pl_module.iterations:
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        file = self._folder(trainer) / "last.ckpt"
        part = file.with_name(".last.ckpt.part")
        file.parent.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            os.replace(part, file)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Shell)
        if trainer.sanity_checking or self.monitor is None:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(k for k in trainer.callback_metrics if k.startswith("val/")))
            raise ValueError(f"Checkpoints: no validation figure {self.monitor!r}; this run logs {known}")
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or (value > self.best if self.mode == "max" else value < self.best):
            self.best = value
            self._artifact(trainer, pl_module, "best", {self.monitor: value})

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Shell)
        if pl_module.done >= pl_module.iterations:
            scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            self._artifact(trainer, pl_module, "last", scores)

    def _artifact(self, trainer: L.Trainer, module: Shell, name: str, scores: dict[str, float]) -> None:
        provenance = {
            "method": f"{type(module).__module__}.{type(module).__qualname__}",
            "iteration": module.done,
            "iterations": module.iterations,
            "seed": module.seed,
            "scores": scores,
            "averaged": module.averaged is not None,
            "cpu_seconds": round(self._spent(), 1),
        }
        model = module.averaged or module.student
        # Every rank gathers what is sharded, one writes.
        state = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in model.state_dict().items()}
        if trainer.is_global_zero:
            save(model, self._folder(trainer) / name, provenance, state)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "cpu_seconds": self._spent()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._before = state_dict["best"], state_dict["cpu_seconds"]
