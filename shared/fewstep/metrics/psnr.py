"""Peak signal-to-noise ratio as super-resolution papers report it: 8-bit pixels, luma, border shaved.

    PSNR = 10 log10(255^2 / mean (a - b)^2)  dB per image;  report the mean of the dB, not the dB of the mean
    Y    = 16 + (65.481 R + 128.553 G + 24.966 B) / 255     BT.601 studio range, R, G, B in 0..255, Y in 16..235

Both images are first clamped to [0, 1] and rounded to 8 bit, as if saved and read again.
shapes: images (B, 3, H, W) in [0, 1];  results (B,) in float64, inf for identical images
"""

import torch
from torch import Tensor

LUMA = (65.481, 128.553, 24.966)
"""BT.601 weights of R, G, B in Y; their sum is the studio range 219."""


def psnr_y(a: Tensor, b: Tensor, shave: int = 4, rounded_luma: bool = False) -> Tensor:
    """PSNR of Y in dB, shape (B,), without the outer `shave` pixels (by convention the scale factor).

    rounded_luma: round Y to 8 bit too, as KAIR and BasicSR's uint8 path do; it costs hundredths of a dB at 33 dB.
    """
    check_images(a, b, shave)
    return _decibel(shave_border(luma(a, rounded_luma), shave), shave_border(luma(b, rounded_luma), shave))


def psnr_rgb(a: Tensor, b: Tensor, shave: int = 0) -> Tensor:
    """PSNR over the three 8-bit channels in dB, shape (B,)."""
    check_images(a, b, shave)
    return _decibel(shave_border(to_8bit(a), shave), shave_border(to_8bit(b), shave))


def luma(rgb: Tensor, rounded: bool = False) -> Tensor:
    """Y of 8-bit rounded rgb (B, 3, H, W) in [0, 1], shape (B, 1, H, W), in 16..235; `rounded` rounds Y as well."""
    check_rgb(rgb)
    weights = torch.tensor(LUMA, dtype=torch.float64, device=rgb.device) / 255
    y = 16 + torch.einsum("bchw,c->bhw", to_8bit(rgb), weights).unsqueeze(1)
    return y.round() if rounded else y


def to_8bit(image: Tensor) -> Tensor:
    """Whole numbers 0..255, in float64, from an image in [0, 1]; values outside are clamped, nan stays nan."""
    return (image.double().clamp(0, 1) * 255).round()


def shave_border(image: Tensor, shave: int) -> Tensor:
    """Drop `shave` pixels on each of the four sides of (B, C, H, W)."""
    height, width = image.shape[-2:]
    return image[..., shave : height - shave, shave : width - shave]


def check_images(a: Tensor, b: Tensor, shave: int = 0, smallest: int = 1) -> None:
    """Raise unless a and b are equal-shaped RGB batches with `smallest` pixels per side left after shaving."""
    if a.shape != b.shape:
        raise ValueError(f"images have shapes {tuple(a.shape)} and {tuple(b.shape)}; allowed: equal shapes")
    check_rgb(a)
    check_rgb(b)
    height, width = a.shape[-2:]
    least = 2 * max(shave, 0) + smallest
    if shave < 0 or min(height, width) < least:
        raise ValueError(f"images are {height}x{width} with shave {shave}; allowed: shave >= 0, sides >= {least}")


def check_rgb(image: Tensor) -> None:
    """Raise unless image is a floating-point batch (B, 3, H, W)."""
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        given = f"{tuple(image.shape)} {image.dtype}"
        raise ValueError(f"image is {given}; allowed: (B, 3, H, W), floating point in [0, 1]")


def _decibel(a: Tensor, b: Tensor) -> Tensor:
    return 10 * torch.log10(255**2 / (a - b).square().flatten(1).mean(1))
