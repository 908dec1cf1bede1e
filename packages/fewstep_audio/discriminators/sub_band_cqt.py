"""Multi-scale sub-band CQT discriminator: a constant-Q spectrogram, each octave through a convolution of its own first (arXiv:2311.14957).

    (B, N) -> twice the rate -> CQT, real and imaginary part (B, 2, T, octaves bins) -> by octave: conv (3, 9): 2
    conv (3, 9): C; three times conv (3, 9), stride (1, 2) along frequency, dilations 1, 2, 4 in time: C; conv (3, 3): C; leaky 0.1 after each;
    conv (3, 3): 1

Weights are normalised after the first of these. PeriodWave-Turbo judges by (hop, bins) = (512, 24), (256, 36), (256, 48) with C = 128 and nine
octaves, at 24 kHz: one discriminator each. The last convolution's output is not matched, as in the public code.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import weight_norm

from fewstep_audio.cqt import CQT
from fewstep_audio.resample import resample


class SubBandCQTDiscriminator(nn.Module):
    """x (B, N) -> [the outputs of the convolutions (B, C, T, L), logits (B, n)].

    Args:
        rate: of the wave, Hz.
        hop, octaves, bins: of the CQT at twice the rate.
        width: C.
    """

    def __init__(self, rate: int = 24000, hop: int = 512, octaves: int = 9, bins: int = 24, width: int = 128) -> None:
        super().__init__()
        self.rate, self.hop, self.octaves, self.bins, self.width = rate, hop, octaves, bins, width
        self.cqt = CQT(2 * rate, hop, octaves, bins)
        self.by_octave = nn.ModuleList(nn.Conv2d(2, 2, (3, 9), padding=(1, 4)) for _ in range(octaves))
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(2, width, (3, 9), padding=(1, 4)),
                *(weight_norm(nn.Conv2d(width, width, (3, 9), (1, 2), (d, 4), (d, 1))) for d in (1, 2, 4)),
                weight_norm(nn.Conv2d(width, width, 3, padding=1)),
            ]
        )
        self.last = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        spectrum = self.cqt(resample(x, self.rate, 2 * self.rate))
        # (B, 2, T, octaves bins), channels last in memory, as in multi_resolution.py
        h = torch.view_as_real(spectrum.mT.contiguous()).movedim(-1, 1)
        parts = zip(self.by_octave, h.split(self.bins, 3), strict=True)
        h, found = torch.cat([conv(part) for conv, part in parts], 3), []
        for layer in self.layers:
            h = leaky_relu(layer(h), 0.1)
            found.append(h)
        return [*found, self.last(h).flatten(1)]
