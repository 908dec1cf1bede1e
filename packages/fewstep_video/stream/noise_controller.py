"""How much noise a stream's frames are given: less where they move, so that the result follows them (StreamDiffusionV2, arXiv:2511.07399).

motion = clip( max over frames of rms(I_f - I_{f-1}) / .2, 0, 1 ),   I in [-1, 1]
nu    <- .9 (nu_0 - .1 motion) + .1 nu
"""

import torch
from torch import Tensor


class NoiseController:
    """The noise level of one stream, called with each block of frames.

    Args:
        level: nu_0, the level of a still scene, a time of a path in [0, 1].
        span: what motion takes off it; scale: the rms difference that counts as full motion; memory: share of the level before.
    Raises:
        ValueError: a level outside of (0, 1], or one that motion would take below 0.
    """

    def __init__(self, level: float = 0.8, span: float = 0.1, scale: float = 0.2, memory: float = 0.1) -> None:
        if not 0 < level <= 1 or not 0 <= span < level or not scale > 0 or not 0 <= memory < 1:
            raise ValueError(
                f"a level is in (0, 1], its span below it, memory in [0, 1); got {level}, {span} and {memory}"
            )
        self.level, self.span, self.scale, self.memory = level, span, scale, memory
        self.now = level
        self._before: Tensor | None = None

    def motion(self, block: Tensor) -> float:
        """Of a block (1, C, F, H, W) after the one before it, in [0, 1]."""
        frames = block if self._before is None else torch.cat([self._before, block], 2)
        if frames.shape[2] < 2:
            return 0.0
        rms = frames.diff(dim=2).square().mean((0, 1, 3, 4)).sqrt()
        return min(float(rms.max()) / self.scale, 1.0)

    def __call__(self, block: Tensor) -> float:
        """nu for this block."""
        target = self.level - self.span * self.motion(block)
        self.now = (1 - self.memory) * target + self.memory * self.now
        self._before = block[:, :, -1:]
        return self.now
