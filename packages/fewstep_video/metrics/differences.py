"""How much frames change: flicker (as VBench has it, arXiv:2311.17982) and acceleration, on a scale of 255 grey levels.

shapes: video (B, C, F, H, W) in [-1, 1];  results (B,)
"""

from torch import Tensor


def flicker(video: Tensor) -> Tensor:
    """(255 - mean |I_{t+1} - I_t|)/255: 1 where nothing changes. High is called good, and a frozen video has the best."""
    _check(video, 2)
    return 1 - _levels(video).diff(dim=2).abs().flatten(1).mean(1) / 255


def acceleration(video: Tensor) -> Tensor:
    """mean |I_{t+1} - 2 I_t + I_{t-1}| in grey levels; 0 of frozen and of evenly changing videos."""
    _check(video, 3)
    return _levels(video).diff(n=2, dim=2).abs().flatten(1).mean(1)


def _levels(video: Tensor) -> Tensor:
    return (video.float() + 1) * 127.5


def _check(video: Tensor, frames: int) -> None:
    if video.ndim != 5 or video.shape[2] < frames:
        raise ValueError(f"clips are {tuple(video.shape)}; allowed: (B, C, F, H, W) with F >= {frames}")
