"""Whether a video that was made in blocks shows it.

    seam = mean |I_{t+1} - I_t| over the borders of blocks / the same inside of blocks           1 is ideal, a frozen video has 1

shapes: video (B, C, F, H, W) in [-1, 1];  result (B,)
"""

import torch
from torch import Tensor


def seam(video: Tensor, block: int, first: int | None = None) -> Tensor:
    """Blocks of `block` frames; `first`: length of the first one, where it differs.

    Raises:
        ValueError: no border, or blocks of one frame, which have no inside.
    """
    first = block if first is None else first
    if video.ndim != 5 or block < 2 or first < 1 or video.shape[2] <= first:
        given = f"{tuple(video.shape)} with blocks of {block} after one of {first}"
        raise ValueError(f"clips are {given}; allowed: (B, C, F, H, W) of at least two blocks of 2 frames")
    change = video.float().diff(dim=2).abs().mean((1, 3, 4))  # (B, F - 1); number t is between frames t and t + 1
    border = (torch.arange(change.shape[1]) + 1 - first) % block == 0
    border &= torch.arange(change.shape[1]) + 1 >= first
    at, inside = change[:, border].mean(1), change[:, ~border].mean(1)
    return torch.where(inside > 0, at / inside.clamp_min(1e-12), torch.where(at > 0, torch.inf, 1.0))
