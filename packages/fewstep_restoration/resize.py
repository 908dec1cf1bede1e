"""Bicubic resizing as MATLAB imresize and as torch do it; super-resolution anchors (y) are made of these.

    kernel     Keys' cubic, a = -0.5; stretched by 1/scale when scale < 1 (antialiasing)
    centres    output i sits at source coordinate (i + 0.5) / scale - 0.5
    borders    MATLAB mirrors with the edge pixel repeated (... b a | a b c ...); torch renormalises instead

Inside the image torch's antialiased bicubic is MATLAB's; mirroring before and cropping after makes the borders
equal too.

shapes: x (B, C, H, W) -> (B, C, ceil(H scale), ceil(W scale))
"""

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def matlab_bicubic(x: Tensor, scale: float) -> Tensor:
    """Resize like MATLAB `imresize(x, scale, "bicubic")`, borders included; differentiable.

    Args:
        x: (B, C, H, W), any float dtype and range; half precisions are computed in float32. Values may overshoot the
            range of x by the lobes of the kernel: clamp before storing.
        scale: output size / input size, e.g. 1/4, 0.3, 2, 3.5. A scale that is no simple fraction shifts the
            picture by less than 1e-3 of an output pixel.

    Returns:
        (B, C, ceil(H scale), ceil(W scale)), dtype of x.

    Raises:
        ValueError: x is not a non-empty 4-D float tensor, or scale is not positive and finite.
    """
    _check(x, scale)
    pad = _mirror_width(scale)
    skip = round(pad * scale)
    height, width = (_output_size(n, scale) for n in x.shape[-2:])
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    wide = _mirror(_mirror(wide, -2, pad), -1, pad)
    out = F.interpolate(wide, scale_factor=scale, mode="bicubic", align_corners=False, antialias=True)
    return out[..., skip : skip + height, skip : skip + width].to(x.dtype)


def _check(x: Tensor, scale: float) -> None:
    if x.ndim != 4 or not x.is_floating_point() or x.numel() == 0:
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; allowed: a non-empty float tensor (B, C, H, W)")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale}; allowed: a positive finite number")


def _output_size(n: int, scale: float) -> int:
    # The slack is for products such as 10 * 1.1 = 11.000000000000002: 11 pixels, where MATLAB itself would make 12.
    return max(1, math.ceil(n * scale - 1e-9 * n))


def _mirror_width(scale: float) -> int:
    """Source pixels to mirror on each side: at least the reach of the kernel, and a whole number of output pixels."""
    # 2 ceil(1/scale) + 2 covers sizes divisible by 1/scale; when ceil adds a last output it reaches 1/scale further.
    least = 3 * math.ceil(1 / scale) + 2
    return next(p for p in itertools.count(least) if abs(p * scale - round(p * scale)) < 1e-3)


def _mirror(x: Tensor, dim: int, pad: int) -> Tensor:
    """Extend by `pad` mirrored pixels on both sides, edge pixel repeated, as often as a small image needs."""
    n = x.shape[dim]
    i = torch.arange(-pad, n + pad, device=x.device) % (2 * n)
    return x.index_select(dim, torch.where(i < n, i, 2 * n - 1 - i))


class Anchor(ABC):
    """Makes the anchor y of super-resolution, an image of the output size, from the low-resolution image."""

    @abstractmethod
    def __call__(self, lr: Tensor, scale: float) -> Tensor:
        """lr (B, C, h, w) float, any range -> (B, C, H, W), enlarged `scale` times."""


@dataclass(frozen=True)
class MatlabBicubic(Anchor):
    """Keys' cubic with a = -0.5 and mirrored borders, as in the published bicubic benchmarks. Default."""

    def __call__(self, lr: Tensor, scale: float) -> Tensor:
        """`matlab_bicubic(lr, scale)`."""
        return matlab_bicubic(lr, scale)


@dataclass(frozen=True)
class TorchBicubic(Anchor):
    """torch's plain bicubic: a = -0.75, no antialiasing, clamped borders.

    The anchor of the official ResShift, S3Diff, AdcSR and OFTSR code; their weights expect it.
    """

    def __call__(self, lr: Tensor, scale: float) -> Tensor:
        """lr (B, C, h, w) -> (B, C, floor(h scale), floor(w scale)); raises ValueError as `matlab_bicubic`."""
        _check(lr, scale)
        return F.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False)
