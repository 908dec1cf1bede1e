"""Laplacian ratio: how much fine detail an image has, relative to its reference.

    ratio = mean |L * Y_a| / mean |L * Y_ref|,   L = [0 1 0; 1 -4 1; 0 1 0], pixels with all four neighbours

1 is right, below 1 blurred, above 1 noisy or over-sharpened. It tells amount, not place: pair it with PSNR or GMSD.
shapes: images (B, 3, H, W) in [0, 1], H and W >= 3;  result (B,) in float64, >= 0
"""

from torch import Tensor

from fewstep.metrics.psnr import check_images, luma


def laplacian_ratio(a: Tensor, reference: Tensor) -> Tensor:
    """mean |Laplacian of Y| of a over that of reference, shape (B,); inf or nan where the reference is flat."""
    check_images(a, reference, smallest=3)
    return _mean_abs_laplacian(luma(a)) / _mean_abs_laplacian(luma(reference))


def _mean_abs_laplacian(y: Tensor) -> Tensor:
    vertical = y[..., :-2, 1:-1] + y[..., 2:, 1:-1]
    horizontal = y[..., 1:-1, :-2] + y[..., 1:-1, 2:]
    return (vertical + horizontal - 4 * y[..., 1:-1, 1:-1]).abs().flatten(1).mean(1)
