"""Stochastic similarity filter (StreamDiffusion, arXiv:2312.12491): skip frames that look like the last processed one.

    P(skip) = max(0, 1 - (1 - cos)/(1 - threshold)),   cos between the frame and the last one processed

A frame less similar than the threshold is always processed, an identical one is skipped; after `most` skips in a row
one is processed. The official code forgets to start that count again when a frame is processed normally; here it counts
skips in a row.
"""

import torch
from torch import Tensor

from fewstep.guidance.inner import cosine


class SimilarityFilter:
    """The filter of one stream, called with each frame.

    Args:
        threshold: cosine from which frames may be skipped, in [-1, 1); 1 or more skips none.
        most: skips in a row.
        generator: on the CPU, for the coin.
    """

    def __init__(self, threshold: float = 0.98, most: int = 10, generator: torch.Generator | None = None) -> None:
        self.threshold, self.most, self.generator = threshold, most, generator
        self.last: Tensor | None = None
        self.row = 0

    def probability(self, frame: Tensor) -> float:
        """Of skipping this frame."""
        if self.last is None or self.threshold >= 1:
            return 0.0
        return max(0.0, 1 - (1 - cosine(self.last[None], frame[None]).item()) / (1 - self.threshold))

    def skip(self, frame: Tensor) -> bool:
        """Whether to show the last result again; otherwise the frame is taken to be processed."""
        coin = torch.rand((), generator=self.generator, dtype=torch.float64).item()
        if self.row < self.most and coin < self.probability(frame):
            self.row += 1
            return True
        self.last, self.row = frame.clone(), 0
        return False
