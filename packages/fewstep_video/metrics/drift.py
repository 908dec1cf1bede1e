"""How colours and sharpness run away over time, as rollouts that condition on themselves do.

    figure(t) of every frame, least squares line, its change from the first to the last frame:
    mean, std       of the pixels                                        in units of the range of pixels, 2
    saturation      mean of max - min over channels                      the same
    sharpness       mean |gradient|, as a share of its mean over time

shapes: video (B, C, F, H, W) in [-1, 1];  results (B,)
"""

import torch
from torch import Tensor


def drift(video: Tensor) -> dict[str, Tensor]:
    """Signed changes {"mean", "std", "saturation", "sharpness"}; 0 is none. Raises ValueError of fewer than 2 frames."""
    if video.ndim != 5 or video.shape[2] < 2:
        raise ValueError(f"clips are {tuple(video.shape)}; allowed: (B, C, F, H, W) with F >= 2")
    video = video.double()
    flat = video.transpose(1, 2).flatten(2)  # (B, F, C H W)
    gradient = video.diff(dim=3).abs().mean((1, 3, 4)) + video.diff(dim=4).abs().mean((1, 3, 4))
    saturation = (video.amax(1) - video.amin(1)).mean((2, 3))
    return {
        "mean": _change(flat.mean(2)) / 2,
        "std": _change(flat.std(2, correction=0)) / 2,
        "saturation": _change(saturation) / 2,
        "sharpness": _change(gradient) / gradient.mean(1).clamp_min(1e-12),
    }


def _change(value: Tensor) -> Tensor:
    """From the first to the last frame on the line fitted to (B, F)."""
    frames = value.shape[1]
    t = torch.linspace(-0.5, 0.5, frames, dtype=value.dtype, device=value.device)
    return (value * t).sum(1) / t.square().sum()
