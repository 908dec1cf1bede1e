"""Space carving: the largest shape that all silhouettes allow (visual hull), without learning (Direct2.5, arXiv:2311.15980).

    inside(p) = min over views of mask at the projection of p - level

A view does not judge points that it cannot see (behind the camera or outside of its picture).
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, grid_sample, pad

from fewstep_3d.cameras import Cameras
from fewstep_3d.fields import Grid, corners


@torch.no_grad()
def carved(cameras: Cameras, mask: Tensor, side: int = 64, level: float = 0.5, smooth: int = 0) -> Grid:
    """mask (V, H, W) in [0, 1] -> the hull as a field: level - min mask, negative inside, in units of opacity, not of distance.

    Args:
        smooth: how often the field is averaged over 3^3 corners, against the staircase of coarse masks.
    Raises:
        ValueError: masks of another number or size than the cameras.
    """
    if mask.shape != (len(cameras), *cameras.size):
        raise ValueError(
            f"{len(cameras)} cameras of {cameras.size} pixels need masks like that, not {tuple(mask.shape)}"
        )
    points = corners(side, mask).view(-1, 3)
    uv, depth = cameras.project(points)
    height, width = cameras.size
    at = uv / mask.new_tensor([width, height]) * 2 - 1
    seen = grid_sample(mask[:, None], at[:, None], align_corners=False, padding_mode="border")[:, 0, 0]
    outside = (depth <= 0) | (at.abs() > 1).any(-1)
    inside = torch.where(outside, torch.ones_like(seen), seen).amin(0)
    field = (level - inside).view(1, 1, side, side, side)
    for _ in range(smooth):
        field = avg_pool3d(pad(field, [1] * 6, mode="replicate"), 3, 1)
    return Grid(field)
