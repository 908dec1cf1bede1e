"""Scores of single clips, which may be undefined, and their summaries, which say of how many clips they are."""

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Skipped(NamedTuple):
    """A score that a clip does not have, and why."""

    reason: str

    def __str__(self) -> str:
        return f"skipped: {self.reason}"


Score: TypeAlias = float | Skipped


class Summary(NamedTuple):
    """Mean with its standard error over `count` clips; both nan where all `skipped`."""

    mean: float
    error: float
    count: int
    skipped: int


def summary(scores: Iterable[Score]) -> Summary:
    """Of the clips that have the score; the others are counted."""
    scores = list(scores)
    values = torch.tensor([s for s in scores if not isinstance(s, Skipped)], dtype=torch.float64)
    n = len(values)
    error = float(values.std() / n**0.5) if n > 1 else float("nan")
    return Summary(float(values.mean()), error, n, len(scores) - n)


def metric_package(name: str) -> ModuleType:
    """A package that only a metric needs. Raises ModuleNotFoundError with one line that names the extra."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this metric needs the package {name}: pip install 'fewstep[audio-metrics]'"
        ) from error


def check_clips(estimate: Tensor, reference: Tensor) -> None:
    """Raises ValueError unless both are (N,) with one N."""
    if estimate.shape != reference.shape or estimate.ndim != 1:
        shapes = f"{tuple(estimate.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"estimate and reference have shapes {shapes}; allowed: (samples,) both")
