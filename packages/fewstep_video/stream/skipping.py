"""Blocks that look like the last one are not made again (StreamDiffusion's stochastic similarity filter, arXiv:2312.12491)."""

from typing import Protocol

from torch import Tensor

from fewstep.guidance.similarity import SimilarityFilter


class Stage(Protocol):
    """What makes blocks of blocks: `Follow`, `StreamBatch`, `Skipping`. (1, ...) -> (1, ...), None while it fills."""

    def __call__(self, block: Tensor, /) -> Tensor | None: ...

    def drain(self) -> list[Tensor]: ...


class Skipping:
    """A stage that is not called for blocks that the filter skips: its last result is shown again.

    Nothing is skipped before there is a result, so that as many blocks come out as go in.
    """

    def __init__(self, stage: Stage, similarity: SimilarityFilter) -> None:
        self.stage, self.similarity = stage, similarity
        self.shown: Tensor | None = None
        self.skipped = 0

    def __call__(self, block: Tensor) -> Tensor | None:
        """(1, ...) -> the stage's, or the last one again."""
        if self.similarity.skip(block[0]) and self.shown is not None:
            self.skipped += 1
            return self.shown
        made = self.stage(block)
        self.shown = self.shown if made is None else made
        return made

    def drain(self) -> list[Tensor]:
        """What the stage still has."""
        return self.stage.drain()
