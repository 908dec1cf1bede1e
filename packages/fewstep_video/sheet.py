"""Contact sheets: a clip is a row of its frames."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def contact_sheet(
    video: Tensor, columns: int = 8, every: int | None = None, zoom: int | None = None, gap: int = 1
) -> Tensor:
    """Clips (B, C, F, H, W) in [-1, 1], C 1 or 3 -> a picture (3, height, width) in [0, 1], one row a clip.

    Args:
        columns: at most so many frames of each clip; every: of which every so many-th is shown, evenly chosen where not given.
        zoom: factor of the pixels; small frames are enlarged to about 64 pixels where not given.
        gap: white pixels between frames.
    Raises:
        ValueError: other shapes, or fewer than 1 column.
    """
    if video.ndim != 5 or video.shape[1] not in (1, 3) or columns < 1 or 0 in video.shape:
        raise ValueError(
            f"a sheet is of clips (B, 1 or 3, F, H, W) in at least 1 column, not {tuple(video.shape)} in {columns}"
        )
    frames = video.shape[2]
    if every is None:
        index = torch.linspace(0, frames - 1, min(columns, frames)).round().long()
    else:
        index = torch.arange(0, frames, max(every, 1))[:columns]
    shown = ((video[:, :, index].detach().float().cpu() + 1) / 2).clamp(0, 1)
    zoom = zoom or max(1, round(64 / max(video.shape[3:])))
    rows = []
    for clip in shown:  # (C, n, H, W)
        tiles = interpolate(clip.transpose(0, 1).expand(-1, 3, -1, -1), scale_factor=float(zoom), mode="nearest")
        rows.append(_joined(list(tiles), gap, 2))
    return _joined(rows, gap, 1)


def _joined(pieces: list[Tensor], gap: int, dim: int) -> Tensor:
    """Pictures (3, H, W) beside (2) or above (1) each other, white between them."""
    shape = list(pieces[0].shape)
    shape[dim] = gap
    white = torch.ones(shape)
    return torch.cat([piece for p in pieces for piece in (white, p)][1:], dim)
