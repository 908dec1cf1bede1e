"""The modified discrete cosine transform: a wave as frames of M coefficients, no more numbers than samples (Princen, Johnson, Bradley 1987).

    X_kt = sum_n w_n x_{(t-1) M + n} b_nk,   b_nk = sqrt(2/M) cos(pi/M (n + 1/2 + M/2) (k + 1/2)),   w_n = sin(pi (n + 1/2) / 2M),   n < 2M

Frame t is centred at sample t M; coefficient k is about the frequency (k + 1/2) rate / 2M. Waves are followed and preceded by zeros. The transform is
orthonormal but for half of the outermost frames, so white noise stays white, and every state belongs to one wave: nothing in it can contradict.

shapes: wave (B, T M), X (B, M, T + 1)
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad


def mdct(wave: Tensor, size: int) -> Tensor:
    """(B, N) -> (B, M, N / M + 1), M = size.

    Raises:
        ValueError: N is no multiple of M.
    """
    if wave.shape[1] % size:
        raise ValueError(f"{wave.shape[1]} samples are no whole frames of {size}")
    frames = pad(wave, (size, size)).unfold(1, 2 * size, size)
    return (frames @ _basis(size, wave.dtype, wave.device)).mT


def imdct(x: Tensor, length: int | None = None) -> Tensor:
    """(B, M, T + 1) -> (B, T M), or its first `length` samples."""
    first, second = (x.mT @ _basis(x.shape[1], x.dtype, x.device).T).chunk(2, -1)
    return (second[:, :-1] + first[:, 1:]).flatten(1)[:, :length]


def at_coefficients(of_bins: Tensor, size: int) -> Tensor:
    """What is known at the bins of an STFT, (B, F, T), at the coefficients: that of the bin at each one's frequency, (B, size, T)."""
    k = torch.arange(size, device=of_bins.device)
    return of_bins[:, ((k + 0.5) * (of_bins.shape[1] - 1) / size + 0.5).long()]


@lru_cache
@torch.inference_mode(False)  # what is remembered must serve training too
def _basis(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """w_n b_nk, (2M, M)."""
    n = torch.arange(2 * size, dtype=torch.float64)[:, None]
    k = torch.arange(size, dtype=torch.float64)
    window = torch.sin(math.pi / (2 * size) * (n + 0.5)) * math.sqrt(2 / size)
    return (window * torch.cos(math.pi / size * (n + 0.5 + size / 2) * (k + 0.5))).to(device, dtype)
