"""Monotonic alignment search (Glow-TTS, arXiv:2005.11129, algorithm 1): the likeliest way of symbols over frames.

    Q[i, j] = log p[i, j] + max(Q[i, j - 1], Q[i - 1, j - 1])

Every frame has one symbol, every symbol at least one frame, and symbols come in order: no path exists for fewer frames than symbols.

shapes: log p (B, Tx, Ty), Tx symbols, Ty frames;  durations (B, Tx), whose sums are the numbers of frames
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot


class AlignmentError(ValueError):
    """Fewer frames than symbols; one line that names the items."""


def log_likelihood(mu: Tensor, y: Tensor) -> Tensor:
    """log N(y_j; mu_i, 1) = -|y_j - mu_i|^2 / 2 - F/2 log 2 pi;  mu (B, F, Tx), y (B, F, Ty) -> (B, Tx, Ty)."""
    square = mu.square().sum(1)[:, :, None] - 2 * mu.mT @ y + y.square().sum(1)[:, None]
    return -0.5 * square - 0.5 * mu.shape[1] * math.log(2 * math.pi)


@torch.no_grad()
def monotonic_alignment(log_p: Tensor, symbols: Tensor, frames: Tensor) -> Tensor:
    """Durations (B, Tx) int64 of the best path of each item over its first `symbols` (B,) rows and `frames` (B,) columns.

    Raises:
        AlignmentError: items with no path.
    """
    short = [i for i, (x, y) in enumerate(zip(symbols.tolist(), frames.tolist(), strict=True)) if not 1 <= x <= y]
    if short:
        told = ", ".join(f"item {i}: {symbols[i]} symbols, {frames[i]} frames" for i in short[:5])
        raise AlignmentError(f"every symbol needs a frame of its own ({told})")
    batch, rows, columns = log_p.shape
    never = log_p.new_full((batch, 1), -math.inf)
    best = torch.cat([log_p[:, :1, 0], never.expand(-1, rows - 1)], 1)
    moved = torch.zeros(batch, rows, columns, dtype=torch.bool, device=log_p.device)
    for j in range(1, columns):
        before = torch.cat([never, best[:, :-1]], 1)
        moved[:, :, j] = before > best
        best = log_p[:, :, j] + torch.maximum(best, before)
    row, durations = symbols - 1, torch.zeros_like(log_p, dtype=torch.int64)[:, :, 0]
    for j in range(columns - 1, -1, -1):
        here = (j < frames).long()  # frames of padding count for no symbol
        durations += one_hot(row, rows) * here[:, None]
        row = row - moved[torch.arange(batch), row, j].long() * here
    return durations


def stretch(values: Tensor, durations: Tensor, size: int) -> Tensor:
    """Each symbol's value for as many frames as it lasts: values (B, F, Tx), durations (B, Tx) -> (B, F, size), 0 after the end."""
    ends = durations.cumsum(1)
    frame = torch.arange(size, device=values.device).expand(len(values), -1).contiguous()
    symbol = torch.searchsorted(ends, frame, right=True)
    inside = symbol < durations.shape[1]
    index = symbol.clamp(max=durations.shape[1] - 1)[:, None].expand(-1, values.shape[1], -1)
    return values.gather(2, index) * inside[:, None]
