"""Multi-resolution STFT distance (Parallel WaveGAN, arXiv:1910.11480, equations 3 to 6).

    d(x, y) = mean over resolutions of  ||Y| - |X||_F / ||Y||_F  +  mean |ln |Y| - ln |X||

The first term looks at the loud parts, the second at the quiet ones. y is the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distances import Distance
from fewstep_audio.metrics.magnitudes import magnitudes


@dataclass(frozen=True)
class MultiResolutionStft(Distance):
    """Waves (B, N), the second the reference -> (B,).

    Args:
        sizes, hops, windows: of each resolution, in samples; the paper's, for 24 kHz.
    """

    sizes: Sequence[int] = (1024, 2048, 512)
    hops: Sequence[int] = (120, 240, 50)
    windows: Sequence[int] = (600, 1200, 240)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        each = []
        for size, hop, window in zip(self.sizes, self.hops, self.windows, strict=True):
            x, y = (magnitudes(v, size, hop, window) for v in (a, b))
            convergence = (y - x).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
            each.append(convergence + (y.log() - x.log()).abs().flatten(1).mean(1))
        return torch.stack(each).mean(0)
