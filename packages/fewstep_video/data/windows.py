"""Clips cut from videos: so many frames at a stride or a rate, resized and cropped to one size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fewstep_video.files import VideoError, read_frames, video_info


@dataclass(frozen=True)
class Window:
    """`frames` frames of height x width.

    Args:
        frames, height, width: of a clip.
        stride: every so many-th frame of the video; fps: in its place, the frames nearest to this rate.
    Raises:
        ValueError: numbers below 1, stride and fps both given.
    """

    frames: int = 8
    height: int = 32
    width: int = 32
    stride: int = 1
    fps: float | None = None

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width, self.stride) < 1:
            raise ValueError(f"a window is at least 1 frame of 1x1 pixels at stride 1, not {self}")
        if self.fps is not None and (self.fps <= 0 or self.stride != 1):
            raise ValueError(f"a window has a rate above 0 or a stride, not fps {self.fps} and stride {self.stride}")

    def steps(self, rate: float) -> list[int]:
        """Which frames it takes of a video of this rate, from 0 on; the last one plus one is its span.

        Raises:
            ValueError: fps above the rate of the video, whose frames would repeat.
        """
        if self.fps is None:
            return [k * self.stride for k in range(self.frames)]
        if self.fps > rate * 1.001:
            raise ValueError(f"the window wants {self.fps:g} frames per second, the video has {rate:g}")
        return [int(k * rate / self.fps + 0.5) for k in range(self.frames)]

    def fitted(self, frames: Tensor) -> Tensor:
        """(n, 3, H, W) uint8 -> (n, 3, height, width): the middle, as large as the shape allows, by area."""
        high, wide = frames.shape[2:]
        scale = min(high / self.height, wide / self.width)
        rows, columns = round(self.height * scale), round(self.width * scale)
        top, left = (high - rows) // 2, (wide - columns) // 2
        middle = frames[:, :, top : top + rows, left : left + columns].float()
        mode = "area" if scale >= 1 else "bilinear"
        small = interpolate(middle, (self.height, self.width), mode=mode)
        return small.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Video:
    """A video that windows are cut from, its frames held small in memory: (n, 3, height, width) uint8.

    Attributes:
        steps: of the frames of a window.
    """

    path: Path
    frames: Tensor
    steps: Sequence[int]

    @property
    def starts(self) -> int:
        """In how many places a window fits."""
        return len(self.frames) - self.steps[-1]

    def clip(self, start: int) -> Tensor:
        """The window that begins there, (3, F, H, W) in [-1, 1]. Raises IndexError past the end."""
        if not 0 <= start < self.starts:
            raise IndexError(f"{self.path}: no window begins at frame {start}; there are {self.starts}")
        return self.frames[[start + s for s in self.steps]].transpose(0, 1).float() / 127.5 - 1


def read_small(path: Path, window: Window) -> Video:
    """All of a video, each frame made small as it is decoded.

    Raises:
        VideoError: as `read_frames`; a video that is shorter than the window, or has too few frames per second.
    """
    rate = video_info(path).fps
    try:
        steps = window.steps(rate)
    except ValueError as error:
        raise VideoError(f"{path}: {error}; allowed: at least that rate") from error
    small = torch.cat([window.fitted(frame[None]) for frame in read_frames(path)])
    if len(small) <= steps[-1]:
        raise VideoError(f"{path}: {len(small)} frames; allowed: at least the {steps[-1] + 1} of a window")
    return Video(path, small, steps)
