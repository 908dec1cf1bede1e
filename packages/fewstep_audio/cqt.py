"""Constant-Q transform by octaves (Schörkhuber and Klapuri, 2010), in torch and differentiable.

    C(k, n) = sqrt(N_k) sum_m x(n hop + m) conj a_k(m),   a_k(m) = hann_k(m) exp(2 pi i f_k m / rate) / sum hann_k
    f_k = lowest 2^(k / bins),  N_k = Q rate / f_k,  Q = 1 / (2^(1 / bins) - 1),  hann_k(m) = cos^2(pi m / N_k) for |m| < N_k / 2

The kernels of the highest octave serve all: each octave below takes the wave at half the rate. The scale sqrt(N_k) is librosa's.

shapes: x (B, N) -> (B, octaves bins, T) complex, T = (N - 1) // hop + 1, frames centred
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d


class CQT(nn.Module):
    """Args:
        rate: of the wave, Hz.
        hop: samples, 2^(octaves - 1) times a whole number.
        octaves: above `lowest`; bins: of each.
        lowest: Hz; C1 unless given.
    Raises:
        ValueError: hops that cannot be halved so often, octaves beyond half the rate.
    """

    kernels: Tensor
    lowpass: Tensor
    scale: Tensor

    def __init__(self, rate: int, hop: int, octaves: int = 9, bins: int = 24, lowest: float = 32.703) -> None:
        super().__init__()
        if hop % 2 ** (octaves - 1):
            raise ValueError(f"{octaves} octaves need a hop that 2^{octaves - 1} divides, not {hop}")
        if lowest * 2**octaves > rate / 2:
            raise ValueError(f"{octaves} octaves above {lowest:g} Hz end beyond half of {rate} Hz")
        self.rate, self.hop, self.octaves, self.bins, self.lowest = rate, hop, octaves, bins, lowest
        q = 1 / (2 ** (1 / bins) - 1)
        top = lowest * 2.0 ** (octaves - 1 + torch.arange(bins, dtype=torch.float64) / bins)
        self.register_buffer("kernels", _kernels(q * rate / top, top / rate), persistent=False)
        self.register_buffer("lowpass", _half_band(), persistent=False)
        # N_k at the full rate, the lowest first.
        lengths = q * rate / (lowest * 2.0 ** (torch.arange(octaves * bins, dtype=torch.float64) / bins))
        self.register_buffer("scale", lengths.sqrt(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernels, lowpass = self.kernels.to(x)[:, None], self.lowpass.to(x)[None, None]
        h, found = x[:, None], []
        for octave in range(self.octaves):
            parts = conv1d(h, kernels, stride=self.hop >> octave, padding=kernels.shape[2] // 2)
            found.append(torch.complex(*parts.chunk(2, 1)))
            h = conv1d(h, lowpass, stride=2, padding=lowpass.shape[2] // 2)
        return torch.cat(found[::-1], 1) * self.scale.to(x)[:, None]


def _kernels(lengths: Tensor, frequencies: Tensor) -> Tensor:
    """(2 bins, odd) float64: the real parts of conj a_k, then the imaginary ones; frequencies in cycles per sample."""
    reach = math.ceil(float(lengths.max()) / 2)
    m = torch.arange(-reach, reach + 1, dtype=torch.float64)
    hann = torch.where(m.abs() < lengths[:, None] / 2, (torch.pi * m / lengths[:, None]).cos().square(), 0.0)
    hann = hann / hann.sum(1, keepdim=True)
    angle = 2 * torch.pi * frequencies[:, None] * m
    return torch.cat([hann * angle.cos(), -hann * angle.sin()])


def _half_band(reach: int = 40) -> Tensor:
    """Lowpass at a quarter of the rate for taking every second sample: a sinc under a Kaiser window, -100 dB beyond .32 of the rate."""
    m = torch.arange(-reach, reach + 1, dtype=torch.float64)
    taps = torch.sinc(m / 2) * torch.kaiser_window(2 * reach + 1, periodic=False, beta=10.0, dtype=torch.float64)
    return taps / taps.sum()
