"""Log-spectral distance (Gray & Markel 1976), in dB.

d(x, y) = mean over frames of sqrt(mean over frequencies of (20 log10 |X| - 20 log10 |Y|)^2)
"""

from dataclasses import dataclass

from torch import Tensor

from fewstep.distances import Distance
from fewstep_audio.metrics.magnitudes import magnitudes


@dataclass(frozen=True)
class LogSpectral(Distance):
    """Waves (B, N) -> (B,) in dB; powers below 1e-7 count as that.

    Args:
        size, hop: of the frames, in samples; the window has `size`.
    """

    size: int = 1024
    hop: int = 256

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        x, y = (20 * magnitudes(v, self.size, self.hop, self.size).log10() for v in (a, b))
        return (x - y).square().mean(1).sqrt().mean(1)
