"""Models over signals of any length: overlapping windows, added up under weights whose sum is one. Memory holds two windows.

    window k covers [k h, k h + window),  h = window - overlap;  over each overlap
    y = (1 - w) y_k + w y_{k+1},  w = 0 for `context`, then sin^2 (a Hann window's rise), then 1 for `context`

so that samples within `context` of an inner window edge never count: a model whose receptive field reaches no further gives the
result of the whole signal. The last window ends with the signal and is as long as the others.

shapes: blocks (C, n) of any n, windows (C, <= window)
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

WindowModel = Callable[[Tensor, int], Tensor]
"""(C, n) and the position of its first sample in the signal -> (C', n)."""


@dataclass(frozen=True)
class Chunks:
    """How long signals are cut, in samples.

    Args:
        window: given to the model at once.
        overlap: of neighbours, at most half a window.
        context: at each edge of a window computed but not used, at most half an overlap.
    """

    window: int
    overlap: int
    context: int = 0

    def __post_init__(self) -> None:
        if self.window < 1 or not 0 <= 2 * self.context <= self.overlap <= self.window // 2:
            raise ValueError(
                f"window {self.window}, overlap {self.overlap}, context {self.context}; "
                "allowed: window >= 1, 0 <= overlap <= window / 2, 0 <= context <= overlap / 2"
            )

    def __call__(self, blocks: Iterable[Tensor], model: WindowModel) -> Iterator[Tensor]:
        """Blocks in, blocks out, in total as many samples as came in. A signal of at most one window passes the model in one piece.

        Raises:
            ValueError: the model does not keep the number of samples.
        """
        hop = self.window - self.overlap
        rise = self._rise()
        held, start, base = None, 0, 0  # start: of the next window; base: position of the first sample held
        tail: Tensor | None = None

        def add(part: Tensor, tail: Tensor | None) -> Tensor:
            if tail is None:
                return part
            n, w = tail.shape[-1], rise.to(part)
            return torch.cat([tail * (1 - w) + part[:, :n] * w, part[:, n:]], dim=1)

        for block in blocks:
            held = block if held is None else torch.cat([held, block], dim=1)
            while base + held.shape[1] > start + self.window:  # not the last window
                part = add(_run(model, held[:, start - base :][:, : self.window], start), tail)
                yield part[:, :hop]
                tail = part[:, hop:] if self.overlap else None
                # The last window begins after the one just done.
                held, base, start = held[:, start - base :], start, start + hop
        if held is None or held.shape[1] == 0:
            return
        first = max(base + held.shape[1] - self.window, 0)
        yield add(_run(model, held[:, first - base :], first)[:, start - first :], tail)

    def _rise(self) -> Tensor:
        """(overlap,) float64: w above."""
        n = self.overlap - 2 * self.context
        fade = (torch.pi / 2 * (torch.arange(n, dtype=torch.float64) + 0.5) / max(n, 1)).sin().square()
        return torch.cat([torch.zeros(self.context), fade, torch.ones(self.context)])


def join(pieces: Iterable[Tensor], fade: int) -> Iterator[Tensor]:
    """Pieces (C, n) that were made apart, one after the other, with a cross-fade of equal power; blocks out.

        y = cos(p) a + sin(p) b,   p rising from 0 to pi / 2 over `fade` samples

    Equal power, because separately made pieces are uncorrelated: the energy stays level through the join. It is shorter where a
    piece has less than 2 `fade` samples. n pieces lose (n - 1) `fade` samples in total.
    """
    if fade < 0:
        raise ValueError(f"fade is {fade} samples; allowed: at least 0")
    tail: Tensor | None = None
    for piece in pieces:
        room = min(fade, piece.shape[1] // 2)
        if tail is not None:
            n = min(tail.shape[1], room)
            p = math.pi / 2 * (torch.arange(n, dtype=torch.float64, device=piece.device) + 0.5) / max(n, 1)
            before, a = tail[:, : tail.shape[1] - n], tail[:, tail.shape[1] - n :]
            cross = a * p.cos().to(a) + piece[:, :n] * p.sin().to(piece)
            piece = torch.cat([before, cross, piece[:, n:]], dim=1)
        yield piece[:, : piece.shape[1] - room]
        tail = piece[:, piece.shape[1] - room :]
    if tail is not None:
        yield tail


def _run(model: WindowModel, window: Tensor, start: int) -> Tensor:
    out = model(window, start)
    if out.ndim != 2 or out.shape[1] != window.shape[1]:
        raise ValueError(
            f"the model made {tuple(out.shape)} of a window {tuple(window.shape)}; allowed: as many samples"
        )
    return out
