"""The training progress bar: iteration, speed, time left and the latest figures (rich)."""

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from fewstep.train.shell import Shell


def bar(console: Console | None = None) -> Progress:
    """The columns every long job of fewstep shows: description, bar, count, elapsed, remaining, figures."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        # The figures take what room is left, and are cut rather than the counts.
        TextColumn("[dim]{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        expand=True,
        console=console or Console(stderr=True),
        refresh_per_second=4,
    )


class TrainingBar(L.Callback):
    """Counts the module's own iterations (Lightning's bar counts its epochs, which an endless loader does not have)."""

    def __init__(self, name: str = "training") -> None:
        self.name = name

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Shell)
        if trainer.is_global_zero:
            self._bar = bar()
            self._task = self._bar.add_task(self.name, total=pl_module.iterations, completed=pl_module.done, figures="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Shell)
        if trainer.is_global_zero and (pl_module.done % 10 == 0 or pl_module.done == pl_module.iterations):
            figures = {
                k.partition("/")[2]: v for k, v in pl_module.latest.items() if k not in {"train/lr", "train/grad_norm"}
            }
            self._bar.update(
                self._task, completed=pl_module.done, figures="  ".join(f"{k} {v:.4g}" for k, v in figures.items())
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "_bar"):
            self._bar.stop()
