"""Noise of a frame from (seed, clip, frame): a clip is the same alone, in a batch or in blocks, and a longer one begins like a shorter one."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fewstep.solvers.base import Row


class FrameNoise:
    """Standard normal noise for states (B, C, F, H, W), each frame from a stream of its own; a source of noise for `fewstep.sampling.sample`.

    Args:
        shape: (C, F, H, W).
        seed: at least 0.
        clips: B indices; equal ones have equal noise.
        first: number of the first frame.
    """

    def __init__(
        self, shape: Sequence[int], seed: int, clips: Sequence[int], first: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        if seed < 0:
            raise ValueError(f"a seed is 0 or more, not {seed}")
        channels, frames, height, width = shape
        self.frame, self.device = (channels, height, width), device
        numbers = range(first, first + frames)
        self._streams = [[frame_generator(seed, clip, frame) for frame in numbers] for clip in clips]

    def draw(self) -> Tensor:
        """The next noise, (B, C, F, H, W)."""
        drawn = [torch.stack([torch.randn(self.frame, generator=s) for s in clip], 1) for clip in self._streams]
        return torch.stack(drawn).to(self.device)

    def __call__(self, row: Row) -> Tensor:
        """The noise of one solver row."""
        return self.draw()


def frame_generator(seed: int, clip: int, frame: int) -> torch.Generator:
    """The stream of random numbers, on the CPU, of one frame: neighbours share nothing."""
    mixed = int(np.random.SeedSequence([seed, clip, frame]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(mixed)
