"""STFT magnitudes for distances: centred frames, Hann window, never 0."""

import torch
from torch import Tensor

FLOOR = 1e-7  # of the power, as in Parallel WaveGAN


def magnitudes(wave: Tensor, size: int, hop: int, window: int) -> Tensor:
    """(B, N) -> (B, size/2 + 1, N // hop + 1), sqrt(max(re^2 + im^2, 1e-7)); zeros stand beyond the ends."""
    hann = torch.hann_window(window, dtype=wave.dtype, device=wave.device)
    spec = torch.stft(wave, size, hop, window, hann, center=True, pad_mode="constant", return_complex=True)
    return (spec.real.square() + spec.imag.square()).clamp(min=FLOOR).sqrt()
