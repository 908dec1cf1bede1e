"""Multi-scale mel distance of waves: what adversarial tuning reconstructs, and a score of copies (BigVGAN-v2; arXiv:2408.08019).

    d(x, y) = sum over scales of mean |log10 max(mel(x), 1e-5) - log10 max(mel(y), 1e-5)|

windows of 32, 64, ..., 2048 samples with hops of a quarter and 5, 10, ..., 320 bands up to half the rate, Slaney's filters, frames centred.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.distances import Distance
from fewstep_audio.mels import Mel


@dataclass(frozen=True)
class MultiScaleMel(Distance):
    """Waves (B, N) -> (B,).

    Args:
        rate: of the waves, in Hz.
        windows, bands: of each scale.
        floor: of magnitudes.
    """

    rate: int = 24000
    windows: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048)
    bands: Sequence[int] = (5, 10, 20, 40, 80, 160, 320)
    floor: float = 1e-5

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        total = a.new_zeros(len(a))
        for window, bands in zip(self.windows, self.bands, strict=True):
            mel = self.mel(window, bands)
            total = total + (mel(a) - mel(b)).abs().flatten(1).mean(1)
        return total

    def mel(self, window: int, bands: int) -> Mel:
        """The front end of one scale."""
        return Mel(
            self.rate, window, window, window // 4, bands, 0, self.rate / 2,
            eps=0.0, log="log10", clamp=self.floor, framing="centre",
        )  # fmt: skip
