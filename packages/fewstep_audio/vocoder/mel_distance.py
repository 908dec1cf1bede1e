"""Multi-scale mel distance of waves: what adversarial tuning reconstructs (BigVGAN-v2, PeriodWave-Turbo, arXiv:2408.08019).

    d(x, y) = sum over scales of mean |log10 max(mel(x), 1e-5) - log10 max(mel(y), 1e-5)|

windows of 32, 64, ..., 2048 samples with hops of a quarter and 5, 10, ..., 320 bands; magnitudes, librosa's filters (slaney, area 1), frames centred.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distances import Distance
from fewstep_audio.mels import Mel


@dataclass(frozen=True)
class MultiScaleMel(Distance):
    """Waves (B, N) -> (B,).

    Args:
        rate: of the waves, Hz.
        windows, bands: of each scale; windows longer than the waves allow (N > window/2, for the margin by reflection) are an error of torch's.
        floor: of magnitudes.
    """

    rate: int = 24000
    windows: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048)
    bands: Sequence[int] = (5, 10, 20, 40, 80, 160, 320)
    floor: float = 1e-5

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        each = [
            (self.log_mel(a, window, bands) - self.log_mel(b, window, bands)).abs().flatten(1).mean(1)
            for window, bands in zip(self.windows, self.bands, strict=True)
        ]
        return torch.stack(each).sum(0)

    def log_mel(self, x: Tensor, window: int, bands: int) -> Tensor:
        """(B, N) -> (B, bands, frames)."""
        filters = Mel(self.rate, window, window, window // 4, bands, 0, self.rate / 2).matrix
        hann = torch.hann_window(window, dtype=x.dtype, device=x.device)
        magnitude = torch.stft(x, window, window // 4, window=hann, return_complex=True).abs()
        return (filters.to(x) @ magnitude).clamp_min(self.floor).log10()
