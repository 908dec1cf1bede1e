"""Gradient magnitude similarity deviation, a weight-free perceptual distance (arXiv:1308.3052).

    m    = sqrt((a * h_x)^2 + (a * h_y)^2)          Prewitt filters divided by 3
    GMS  = (2 m_a m_b + c) / (m_a^2 + m_b^2 + c)    c = 170 on the scale 0..255
    GMSD = sqrt(mean (GMS - mean GMS)^2)

The grey image .299 R + .587 G + .114 B of the 8-bit rgb spans 0..255, as c expects; Y of the studio range spans only
219 and gives a few percent less. It is first averaged over 2x2 blocks, keeping every second pixel. As in the authors'
Matlab code, filters see zeros outside the image. That code ends in std2 (divides by N - 1); this follows the paper
(divides by N).
shapes: images (B, 3, H, W) in [0, 1];  result (B,) in float64, >= 0, 0 for identical images, lower is better
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.metrics.psnr import check_images, luma

STABILITY = 170.0


def gmsd(a: Tensor, b: Tensor) -> Tensor:
    """GMSD of the grey images in 0..255, shape (B,)."""
    check_images(a, b)
    grad_a, grad_b = _gradient_magnitude(_grey(a)), _gradient_magnitude(_grey(b))
    similarity = (2 * grad_a * grad_b + STABILITY) / (grad_a**2 + grad_b**2 + STABILITY)
    return similarity.flatten(1).std(1, correction=0)


def _grey(rgb: Tensor) -> Tensor:
    return (luma(rgb) - 16) * 255 / 219


def _gradient_magnitude(y: Tensor) -> Tensor:
    """(B, 1, H, W) to (B, 1, ceil(H/2), ceil(W/2))."""
    # An odd side ends in a block half filled with zeros, as Matlab's conv2(..., 'same') has it.
    y = F.avg_pool2d(F.pad(y, (0, y.shape[-1] % 2, 0, y.shape[-2] % 2)), 2)
    prewitt = torch.tensor([[1.0, 0.0, -1.0]] * 3, dtype=y.dtype, device=y.device) / 3
    grad = F.conv2d(y, torch.stack([prewitt, prewitt.T]).unsqueeze(1), padding=1)
    return grad.square().sum(1, keepdim=True).sqrt()
