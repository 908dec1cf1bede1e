"""Mel-cepstral distortion (Kubichek 1993), in dB, with the cepstrum taken from a log mel by a cosine transform.

    MCD = 10 / ln 10 * mean over frames of sqrt(2 sum_{d = 1}^{D} (c_d - c'_d)^2)
    c_d = 2 / M sum_m ln S_m cos(pi d (m + 1/2) / M)      S_m: M mel magnitudes

c_0, the level, is left out; frames are compared as they stand, without time warping. (The factor 2 / M is that of the minimum-phase
mel-cepstrum, so that with all d the value is the RMS difference of the log mels in dB.)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distances import Distance
from fewstep_audio.mels import Mel


@dataclass(frozen=True)
class MelCepstral(Distance):
    """Waves (B, N) -> (B,) in dB.

    Args:
        mel: the front end, of natural logarithm; `bigvgan_24k` and `hifigan_22k` are usual.
        coefficients: D.
    """

    mel: Mel
    coefficients: int = 24

    def __post_init__(self) -> None:
        if self.mel.log != "ln" or not 0 < self.coefficients < self.mel.bands:
            raise ValueError(
                f"mel of {self.mel.log} with {self.mel.bands} bands, {self.coefficients} coefficients; "
                "allowed: the natural logarithm, fewer coefficients than bands"
            )

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.of_mels(self.mel(a), self.mel(b))

    def of_mels(self, a: Tensor, b: Tensor) -> Tensor:
        """Log mels (B, M, T) -> (B,)."""
        bands = a.shape[1]
        d = torch.arange(1, self.coefficients + 1).to(a)
        m = torch.arange(bands).to(a) + 0.5
        cosines = 2 / bands * torch.cos(math.pi / bands * d[:, None] * m)
        cepstra = cosines @ (a - b)
        return 10 / math.log(10) * (2 * cepstra.square().sum(1)).sqrt().mean(1)
