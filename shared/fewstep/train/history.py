"""A logger that keeps every scalar in memory, for reports."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

# name -> (iterations, values)
Curves = dict[str, tuple[list[float], list[float]]]


class History(Logger):
    """curves: name -> (iterations, values)."""

    def __init__(self) -> None:
        super().__init__()
        self.curves: Curves = {}

    @property
    def name(self) -> str:
        return "history"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Not kept."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            x, y = self.curves.setdefault(name, ([], []))
            x.append(step or 0)
            y.append(float(value))
