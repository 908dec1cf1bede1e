"""Clips cut from videos: so many frames at a stride or a rate, resized and cropped to one size."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fewstep_video.files import VideoError, from_bytes, read_frames, video_info


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


class Video(ABC):
    """A video that windows are cut from.

    Args:
        path: of the file; count: its frames; steps: of the frames of a window.
    """

    def __init__(self, path: Path, count: int, steps: Sequence[int]) -> None:
        self.path, self.count, self.steps = path, count, steps

    @property
    def starts(self) -> int:
        """In how many places a window fits."""
        return self.count - self.steps[-1]

    def clip(self, start: int) -> Tensor:
        """The window that begins there, (3, F, height, width) in [-1, 1]. Raises IndexError past the end."""
        if not 0 <= start < self.starts:
            raise IndexError(f"{self.path}: no window begins at frame {start}; there are {self.starts}")
        return from_bytes(self.frames([start + s for s in self.steps]).transpose(0, 1))

    @abstractmethod
    def frames(self, index: list[int]) -> Tensor:
        """(n, 3, height, width) uint8, index rising."""


class SmallVideo(Video):
    """All frames (count, 3, height, width) in memory."""

    def __init__(self, path: Path, steps: Sequence[int], held: Tensor) -> None:
        super().__init__(path, len(held), steps)
        self.held = held

    def frames(self, index: list[int]) -> Tensor:
        return self.held[index]


class FileVideo(Video):
    """No frames in memory: each window is decoded when it is drawn, from the beginning of the file on, so that it is the right one."""

    def __init__(self, path: Path, count: int, steps: Sequence[int], window: Window) -> None:
        super().__init__(path, count, steps)
        self.window = window

    def frames(self, index: list[int]) -> Tensor:
        """The file is decoded up to the last of them."""
        wanted, found = set(index), []
        for i, frame in enumerate(islice(read_frames(self.path), index[-1] + 1)):
            if i in wanted:
                found.append(self.window.fitted(frame[None]))
        return torch.cat(found)


@dataclass(frozen=True)
class Reading(ABC):
    """How the videos of a folder are held."""

    def __call__(self, path: Path, window: Window) -> Video:
        """A video, looked through once.

        Raises:
            VideoError: as `read_frames`; a video that is shorter than the window, or has too few frames per second.
        """
        rate = video_info(path).fps
        try:
            steps = window.steps(rate)
        except ValueError as error:
            raise VideoError(f"{path}: {error}; allowed: at least that rate") from error
        video = self.video(path, window, steps)
        if video.starts < 1:
            raise VideoError(f"{path}: {video.count} frames; allowed: at least the {steps[-1] + 1} of a window")
        return video

    @abstractmethod
    def video(self, path: Path, window: Window, steps: list[int]) -> Video: ...


@dataclass(frozen=True)
class InMemory(Reading):
    """At the window's size: what small sets are best at."""

    def video(self, path: Path, window: Window, steps: list[int]) -> Video:
        return SmallVideo(path, steps, torch.cat([window.fitted(frame[None]) for frame in read_frames(path)]))


@dataclass(frozen=True)
class OnDemand(Reading):
    """Decoded when drawn: any amount of video in the memory of one window, at the cost of decoding up to it; use workers."""

    def video(self, path: Path, window: Window, steps: list[int]) -> Video:
        return FileVideo(path, sum(1 for _ in read_frames(path)), steps, window)
