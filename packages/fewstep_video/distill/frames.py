"""Single frames of clips for critics of pictures: one of each part of the clip, augmented so that a critic of few pictures does not learn them by heart.

sampled     a random frame of each of n equal parts (TSN, arXiv:1608.00859)
augmented   brightness, saturation and contrast, translation, a cut-out (DiffAugment, arXiv:2006.10738), differentiable
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import expand


def sampled(video: Tensor, n: int) -> Tensor:
    """(B, C, F, H, W) -> (B, C, n, H, W), frames drawn for each clip from the global generator.

    Raises:
        ValueError: fewer frames than parts.
    """
    frames = video.shape[2]
    if not 1 <= n <= frames:
        raise ValueError(f"{n} frames of a clip of {frames}: one of each part needs 1 to {frames} parts")
    edges = torch.arange(n + 1) * frames // n
    length = edges.diff()
    at = edges[:-1] + (torch.rand(len(video), n) * length).long().clamp(max=length - 1)
    index = at.to(video.device)[:, None, :, None, None].expand(-1, video.shape[1], -1, *video.shape[3:])
    return video.gather(2, index)


@dataclass(frozen=True)
class DiffAugment:
    """(B, C, n, H, W) -> the same; every frame is changed in its own way.

    Args:
        colour: whether brightness (+- .5), saturation (0 to 2 times) and contrast (.5 to 1.5 times) change.
        shift: largest translation as a share of a side; cut: side of the square that is cut out.
    """

    colour: bool = True
    shift: float = 0.125
    cut: float = 0.5

    def __call__(self, frames: Tensor) -> Tensor:
        x = frames.transpose(1, 2).flatten(0, 1)  # (B n, C, H, W)
        x = self.coloured(x) if self.colour else x
        x = self.shifted(x) if self.shift else x
        x = self.cut_out(x) if self.cut else x
        return x.unflatten(0, (frames.shape[0], frames.shape[2])).transpose(1, 2)

    def coloured(self, x: Tensor) -> Tensor:
        """Each a factor or an offset per picture."""
        light, grey, strong = torch.rand(3, len(x), device=x.device).unbind()
        x = x + expand(light - 0.5, x)
        mean = x.mean(1, keepdim=True)
        x = mean + (x - mean) * expand(2 * grey, x)
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + (x - mean) * expand(strong + 0.5, x)

    def shifted(self, x: Tensor) -> Tensor:
        """By whole pixels, zeros coming in."""
        n, _, height, width = x.shape
        rows, columns = (self._places(n, side, x) for side in (height, width))
        inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        moved = x[torch.arange(n, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None]]
        return moved.permute(0, 3, 1, 2) * inside

    def _places(self, n: int, side: int, x: Tensor) -> Tensor:
        most = int(self.shift * side + 0.5)
        away = torch.randint(-most, most + 1, (n, 1), device=x.device)
        return torch.arange(side, device=x.device) + away

    def cut_out(self, x: Tensor) -> Tensor:
        """A square of zeros, its middle anywhere."""
        n, _, height, width = x.shape
        kept = [self._away(n, side, x) > int(self.cut * side + 0.5) / 2 for side in (height, width)]
        return x * (kept[0][:, None, :, None] | kept[1][:, None, None])

    def _away(self, n: int, side: int, x: Tensor) -> Tensor:
        middle = torch.randint(side + 1, (n, 1), device=x.device)
        return (torch.arange(side, device=x.device) + 0.5 - middle).abs()
