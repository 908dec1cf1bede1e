"""Timing beside a peer in one process: thread CPU time, best of several rounds, so that a busy machine disturbs little."""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def best_of(f: Callable[[], Any], rounds: int = 7, repeats: int = 20) -> float:
    """Least mean CPU seconds of this thread per call, over `rounds` rounds of `repeats` calls, after one warm-up call."""
    f()
    least = float("inf")
    for _ in range(rounds):
        start = time.thread_time()
        for _ in range(repeats):
            f()
        least = min(least, (time.thread_time() - start) / repeats)
    return least


def machine() -> dict[str, Any]:
    """What a timing was taken on."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def write(table: dict[str, Any], out: str | None) -> None:
    """Print the table as JSON and store it where asked."""
    text = json.dumps(table, indent=2)
    print(text)
    if out is not None:
        Path(out).write_text(text + "\n")
