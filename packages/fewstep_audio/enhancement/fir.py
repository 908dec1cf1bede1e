"""Resampling of feature maps by 2 with the low-pass filter [1, 3, 3, 1] (StyleGAN2, arXiv:1912.04958; NCSN++, arXiv:2011.13456).

    down   y[n] = sum_m k[m] x[2n + m - 1],              k = [1, 3, 3, 1]/8
    up     y[n] = sum_m 2 k[m] u[n + m - 2],             u = x with a zero after every element

in both directions of the map, each channel for itself. A constant stays that constant, but for the border, where zeros are seen.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d

TAPS = (1.0, 3.0, 3.0, 1.0)


def _filter(x: Tensor, gain: float) -> Tensor:
    """(C, 1, 4, 4), of this sum."""
    taps = torch.tensor(TAPS, dtype=x.dtype, device=x.device)
    taps = taps / taps.sum()
    return (gain * taps[:, None] * taps).expand(x.shape[1], 1, 4, 4)


def down(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H/2, W/2), H and W even."""
    return conv2d(x, _filter(x, 1.0), stride=2, padding=1, groups=x.shape[1])


def up(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W)."""
    return conv_transpose2d(x, _filter(x, 4.0), stride=2, padding=1, groups=x.shape[1])
