"""How alike the frames of a clip are (VBench's consistency, arXiv:2311.17982, with random features in place of DINO's).

shapes: video (B, C, F, H, W) in [-1, 1];  result (B,) in [-1, 1], 1 of a frozen video
"""

import torch
from torch import Tensor

from fewstep_video.metrics.random_features import extractor


def consistency(video: Tensor) -> Tensor:
    """Mean cosine of a frame's features with the first frame's and with the previous one's. Raises ValueError of fewer than 2 frames."""
    if video.ndim != 5 or video.shape[2] < 2:
        raise ValueError(f"clips are {tuple(video.shape)}; allowed: (B, C, F, H, W) with F >= 2")
    features = extractor(2)(video.cpu().transpose(1, 2).flatten(0, 1)).unflatten(0, (len(video), video.shape[2]))
    first = torch.cosine_similarity(features[:, 1:], features[:, :1], dim=2)
    previous = torch.cosine_similarity(features[:, 1:], features[:, :-1], dim=2)
    return (first + previous).mean(1) / 2
