"""Where a stream's frames go as they are ready: a video, a folder of pictures, raw bytes on stdout."""

import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from torch import Tensor

from fewstep.whole_file import whole
from fewstep_video.files import VideoError, VideoWriter, to_bytes


class Sink(ABC):
    """Frames (C, n, H, W) in [-1, 1], C 1 or 3, in turn."""

    @abstractmethod
    def write(self, frames: Tensor) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(  # noqa: B027 (most have nothing to end)
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what was begun."""


class FileSink(Sink):
    """A video: whole where the stream ends, and nothing where it fails."""

    def __init__(self, path: Path, fps: float, about: dict[str, Any]) -> None:
        self.writer = VideoWriter(path, fps, about=about)

    def write(self, frames: Tensor) -> None:
        self.writer.write(frames)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.__exit__(kind, error, trace)


class FolderSink(Sink):
    """000000.png, 000001.png, ...: each is there whole as soon as it is ready.

    Raises:
        VideoError: a folder that holds pictures already, or whose parent is missing.
    """

    def __init__(self, folder: Path) -> None:
        if folder.is_file() or not folder.parent.is_dir():
            raise VideoError(f"{folder}: not a folder that can be made; allowed: a new one in an existing folder")
        folder.mkdir(exist_ok=True)
        if any(folder.glob("*.png")):
            raise VideoError(f"{folder}: holds pictures already; allowed: an empty or a new folder")
        self.folder, self.count = folder, 0

    def write(self, frames: Tensor) -> None:
        """The next pictures, each whole or not at all."""
        import cv2

        for frame in to_bytes(frames).expand(3, -1, -1, -1).unbind(1):
            pixels = frame.permute(1, 2, 0).flip(2).contiguous().numpy()  # OpenCV's order is blue first
            done, data = cv2.imencode(".png", pixels)
            assert done
            with whole(self.folder / f"{self.count:06d}.png") as part:
                part.write_bytes(data.tobytes())
            self.count += 1


class RawSink(Sink):
    """rgb24 bytes, flushed after every block; other programs read them with the size and rate that the report says."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self.stream = stream or sys.stdout.buffer

    def write(self, frames: Tensor) -> None:
        self.stream.write(to_bytes(frames).expand(3, -1, -1, -1).permute(1, 2, 3, 0).contiguous().numpy().tobytes())
        self.stream.flush()


def sink(output: str, fps: float, about: dict[str, Any]) -> Sink:
    """By what `output` looks like: -, a name with an extension, or a folder."""
    if output == "-":
        return RawSink()
    path = Path(output)
    return FileSink(path, fps, about) if path.suffix else FolderSink(path)
