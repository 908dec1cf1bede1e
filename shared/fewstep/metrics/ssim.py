"""Structural similarity (Wang, Bovik, Sheikh & Simoncelli 2004, IEEE TIP 13:600), eq. 13 with its constants.

    SSIM = mean of (2 m_a m_b + C1)(2 s_ab + C2) / ((m_a^2 + m_b^2 + C1)(s_a^2 + s_b^2 + C2))

m, s: means and population moments under an 11x11 Gaussian window, sigma 1.5, at positions where it fits entirely;
C1 = (.01 * 255)^2, C2 = (.03 * 255)^2.
shapes: images (B, C, H, W);  results (B,) in float64, in [-1, 1], 1 for identical images
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.metrics.psnr import check_images, luma, shave_border

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim_y(a: Tensor, b: Tensor, shave: int = 4, rounded_luma: bool = False) -> Tensor:
    """SSIM of Y, shape (B,), for rgb (B, 3, H, W) in [0, 1], rounded to 8 bit, without the outer `shave` pixels.

    rounded_luma: round Y to 8 bit too, as KAIR does.
    """
    check_images(a, b, shave, smallest=WINDOW)
    return ssim(shave_border(luma(a, rounded_luma), shave), shave_border(luma(b, rounded_luma), shave))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of (B, C, H, W) in 0..255, each channel on its own, averaged over channels and positions: (B,)."""
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[-2:]) < WINDOW:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"images have shapes {shapes}; allowed: equal (B, C, H, W) with H and W >= {WINDOW}")
    a, b = a.double(), b.double()
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = _window_means(torch.stack([a, b, a * a, b * b, a * b]))
    var_a, var_b, cov = mean_aa - mean_a**2, mean_bb - mean_b**2, mean_ab - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * cov + C2) / (var_a + var_b + C2)
    return (luminance * structure).flatten(1).mean(1)


def _window_means(x: Tensor) -> Tensor:
    """Gaussian means over the last two axes, valid region only: (..., H, W) to (..., H - 10, W - 10)."""
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-(offset**2) / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return flat.reshape(*x.shape[:-2], *flat.shape[-2:])
