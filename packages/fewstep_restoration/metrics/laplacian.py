"""Laplacian ratio: how much fine detail an image has, relative to its reference.

    ratio = mean |L * Y_a| / mean |L * Y_ref|,   L = [0 1 0; 1 -4 1; 0 1 0], pixels with all four neighbours

Y is taken without rounding to 8 bit, whose steps a Laplacian would count as detail of a smooth image.
1 is right, below 1 blurred, above 1 noisy or over-sharpened. It tells amount, not place: pair it with PSNR or GMSD.
shapes: images (B, 3, H, W) in [0, 1], H and W >= 3;  result (B,) in float64, >= 0
"""

import torch
from torch import Tensor

from fewstep.metrics.psnr import LUMA, check_images


def laplacian_ratio(a: Tensor, reference: Tensor) -> Tensor:
    """mean |Laplacian of Y| of a over that of reference, shape (B,); inf or nan where the reference is flat."""
    check_images(a, reference, smallest=3)
    return _mean_abs_laplacian(a) / _mean_abs_laplacian(reference)


def _mean_abs_laplacian(rgb: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=torch.float64, device=rgb.device)
    y = torch.einsum("bchw,c->bhw", rgb.double().clamp(0, 1), weights)
    vertical = y[..., :-2, 1:-1] + y[..., 2:, 1:-1]
    horizontal = y[..., 1:-1, :-2] + y[..., 1:-1, 2:]
    return (vertical + horizontal - 4 * y[..., 1:-1, 1:-1]).abs().mean((1, 2))
