"""Read and write videos frame by frame with PyAV: memory holds one frame, whatever the length.

Written mp4 files play in browsers: H.264, yuv420p, index in front. That format has even sides alone: odd ones are padded by repeating the last row
or column, and the true size stands in the file's comment, by which it is cropped when it is read here.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import uuid4

import av
import numpy as np
import torch
from av.codec.codec import UnknownCodecError
from av.error import FFmpegError
from torch import Tensor

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".gif", ".webp")
WRITE_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm")
_ENCODERS = {".mp4": "libx264", ".mkv": "libx264", ".mov": "libx264", ".webm": "libvpx-vp9"}
# x264's macroblock tree makes other files of the same small frames from run to run.
_OPTIONS = {"libx264": {"x264-params": "mbtree=0"}}
_ALLOWED = f"a video of at least one frame of 2x2 pixels, {' '.join(SUFFIXES)}"


class VideoError(ValueError):
    """A video that cannot be read, written or used. One line: the file, what is wrong, what is allowed."""


class VideoInfo(NamedTuple):
    """fps: frames per second; width, height in pixels; frames: as the header says, 0 where it does not; comment: of the file."""

    fps: float
    width: int
    height: int
    frames: int
    comment: str


def video_info(path: str | Path) -> VideoInfo:
    """What the header says.

    Raises:
        VideoError: a file that is missing, no video, without a decoder, or smaller than 2x2.
    """
    with _opened(Path(path)) as source:
        return source.info


def read_frames(path: str | Path) -> Iterator[Tensor]:
    """The frames of a file one by one, (3, H, W) uint8, upright as the file says.

    Raises:
        VideoError: as `video_info`; once they are met: damaged or missing frames, frames of another size; no frame at all.
    """
    with _opened(Path(path)) as source:
        yield from source.frames()


def read_video(path: str | Path, most: int | None = None) -> Tensor:
    """At most so many frames of a file as (3, F, H, W) in [-1, 1]. Raises VideoError as `read_frames`."""
    kept = []
    for frame in read_frames(path):
        kept.append(frame)
        if most is not None and len(kept) >= most:
            break
    return from_bytes(torch.stack(kept, 1))


def from_bytes(frames: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return frames.float() / 127.5 - 1


def to_bytes(video: Tensor) -> Tensor:
    """[-1, 1] -> uint8, clamped."""
    return ((video.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


class _Source:
    """An open file."""

    def __init__(self, path: Path, container: Any) -> None:
        self.path, self.container = path, container
        if not container.streams.video:
            what = "sound alone" if container.streams.audio else "nothing that is a video"
            raise VideoError(f"{path}: holds {what}; allowed: {_ALLOWED}")
        self.stream = container.streams.video[0]
        self.stream.thread_type = "AUTO"
        width, height = self.stream.codec_context.width, self.stream.codec_context.height
        comment = next((str(v) for k, v in container.metadata.items() if k.lower() == "comment"), "")  # COMMENT in mkv
        self.crop = _size_of(comment)
        fps = self.stream.average_rate or self.stream.guessed_rate
        if min(width, height) < 2 or (self.crop is not None and min(self.crop) < 2):
            size = "x".join(map(str, self.crop or (width, height)))
            raise VideoError(f"{path}: frames of {size} pixels; allowed: {_ALLOWED}")
        width, height = self.crop or (width, height)
        self.info = VideoInfo(float(fps or 0), width, height, int(self.stream.frames), comment)

    def frames(self) -> Iterator[Tensor]:
        """Upright frames (3, H, W) uint8, one by one. Raises VideoError for none, for other sizes than the first, for damaged and truncated files."""
        count, first = 0, None
        try:
            for frame in self.container.decode(self.stream):
                size = (frame.width, frame.height)
                first = first or size
                if size != first:
                    was, now = ("x".join(map(str, s)) for s in (first, size))
                    raise VideoError(f"{self.path}: frame {count} is {now}, the first is {was}; allowed: one size")
                count += 1
                yield self.upright(frame)
        except FFmpegError as error:
            raise VideoError(
                f"{self.path}: damaged after {count} frames ({_reason(error)}); allowed: a complete file"
            ) from error
        if count == 0:
            raise VideoError(f"{self.path}: holds no frames; allowed: {_ALLOWED}")
        if count < self.info.frames - 1:  # headers may count one that no decoder shows
            raise VideoError(f"{self.path}: truncated, {count} of {self.info.frames} frames; allowed: a complete file")

    def upright(self, frame: Any) -> Tensor:
        """(3, H, W) uint8."""
        pixels = torch.from_numpy(np.ascontiguousarray(frame.to_ndarray(format="rgb24"))).permute(2, 0, 1)
        if self.crop is not None:
            pixels = pixels[:, : self.crop[1], : self.crop[0]]
        turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
        return pixels.rot90(turns, (1, 2)).contiguous() if turns else pixels.contiguous()


class _opened:
    """An open `_Source` that is closed at the end, with PyAV's errors as one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Source:
        if not self.path.is_file():
            what = "a folder" if self.path.is_dir() else "no such file"
            raise VideoError(f"{self.path}: {what}; allowed: {_ALLOWED}")
        if self.path.stat().st_size == 0:
            raise VideoError(f"{self.path}: the file is empty; allowed: {_ALLOWED}")
        try:
            self.container = av.open(str(self.path))
        except (FFmpegError, ValueError) as error:
            raise VideoError(f"{self.path}: cannot be read ({_reason(error)}); allowed: {_ALLOWED}") from error
        try:
            return _Source(self.path, self.container)
        except VideoError:
            self.container.close()
            raise
        except (FFmpegError, ValueError, AttributeError) as error:
            self.container.close()
            raise VideoError(
                f"{self.path}: no decoder for its codec ({_reason(error)}); allowed: {_ALLOWED}"
            ) from error

    def __exit__(self, *_: object) -> None:
        self.container.close()


class VideoWriter:
    """A video that appears when the `with` block ends well, and not at all when it raises; `save` keeps what there is at any time.

    Args:
        path: .mp4, .mkv, .mov (H.264) or .webm (VP9).
        fps: frames per second.
        quality: constant rate factor, 0 (lossless) to 51; 18 is visually lossless.
        about: JSON facts for the file's comment.
    Raises:
        VideoError: another extension, a missing folder, an encoder that this PyAV lacks, a rate that is not positive.
    """

    def __init__(self, path: str | Path, fps: float, quality: int = 18, about: Mapping[str, Any] | None = None) -> None:
        self.path, self.fps, self.quality, self.about = Path(path), fps, quality, dict(about or {})
        suffix = self.path.suffix.lower()
        if suffix not in WRITE_SUFFIXES:
            raise VideoError(f"{path}: cannot write {suffix or 'no extension'}; allowed: {' '.join(WRITE_SUFFIXES)}")
        if not self.path.parent.is_dir():
            raise VideoError(f"{path}: folder {self.path.parent} does not exist; allowed: an existing folder")
        if not 0 < fps <= 1000 or not 0 <= quality <= 51:
            raise VideoError(f"{path}: {fps} frames per second at quality {quality}; allowed: up to 1000, 0 to 51")
        self.encoder = _ENCODERS[suffix]
        try:
            av.Codec(self.encoder, "w")
        except UnknownCodecError as error:
            have = " ".join(s for s, e in _ENCODERS.items() if e != self.encoder and _has(e)) or "none"
            raise VideoError(f"{path}: this PyAV has no encoder {self.encoder}; what it can write: {have}") from error
        self.frames = 0
        self.size: tuple[int, int] | None = None
        # The extension of the temporary name tells PyAV the container.
        self._temporary = self.path.parent / f".{uuid4().hex}{suffix}"
        self._container: Any = None

    def __enter__(self) -> Self:
        return self

    def write(self, video: Tensor) -> None:
        """Append frames (C, n, H, W) in [-1, 1], C 1 or 3; values outside are clamped.

        Raises:
            VideoError: nan, another number of channels, another size than the first frames had.
        """
        if video.ndim != 4 or video.shape[0] not in (1, 3) or 0 in video.shape:
            raise VideoError(f"{self.path}: frames of shape {tuple(video.shape)}; allowed: (1 or 3, n, H, W)")
        if not bool(video.isfinite().all()):
            raise VideoError(f"{self.path}: frames hold nan or inf; allowed: finite pixels")
        height, width = video.shape[2:]
        if self.size is None:
            self._open(width, height)
        if (width, height) != self.size:
            raise VideoError(f"{self.path}: a frame of {width}x{height} after {self.size}; allowed: one size")
        for frame in to_bytes(video).expand(3, -1, -1, -1).unbind(1):
            self._encode(frame)

    def _open(self, width: int, height: int) -> None:
        self.size = (width, height)
        even = width + width % 2, height + height % 2
        about = {**self.about, **({"size": self.size} if even != self.size else {})}
        try:
            # MP4 keeps free comments alone.
            self._container = av.open(str(self._temporary), "w", options={"movflags": "+faststart"})
            if about:
                self._container.metadata["comment"] = json.dumps({"fewstep": about})
            rate = Fraction(self.fps).limit_denominator(1001)
            options = {"crf": str(self.quality), **_OPTIONS.get(self.encoder, {})}
            self._stream = self._container.add_stream(self.encoder, rate=rate, options=options)
        except (FFmpegError, ValueError, OSError) as error:
            self._discard()
            raise VideoError(f"{self.path}: cannot be written ({_reason(error)})") from error
        self._stream.width, self._stream.height, self._stream.pix_fmt = *even, "yuv420p"

    def _encode(self, frame: Tensor) -> None:
        assert self.size is not None
        width, height = self.size
        pixels = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            for packet in self._stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                self._container.mux(packet)
        except (FFmpegError, ValueError, OSError) as error:
            raise VideoError(f"{self.path}: frame {self.frames} cannot be encoded ({_reason(error)})") from error
        self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        if self.frames == 0:
            self._discard()
            raise VideoError(f"{self.path}: nothing to write; allowed: at least one frame")
        self.save()

    def save(self) -> None:
        """End the file with what was written and give it its name: what interrupted streams do in place of nothing."""
        if self._container is None:
            return
        try:
            for packet in self._stream.encode(None):
                self._container.mux(packet)
            self._container.close()
            self._container = None
            os.replace(self._temporary, self.path)
        except (FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: cannot be written ({_reason(error)})") from error
        finally:
            self._discard()

    def _discard(self) -> None:
        if self._container is not None:
            with suppress(FFmpegError, OSError, ValueError):
                self._container.close()
            self._container = None
        self._temporary.unlink(missing_ok=True)


def write_video(
    path: str | Path, video: Tensor, fps: float, quality: int = 18, about: Mapping[str, Any] | None = None
) -> None:
    """Write a clip (C, F, H, W) in [-1, 1], whole or not at all. Raises VideoError as `VideoWriter`."""
    with VideoWriter(path, fps, quality, about) as writer:
        writer.write(video)


def list_videos(folder: str | Path, recursive: bool = False) -> list[Path]:
    """Sorted paths of the videos in a folder (and below it if `recursive`), by extension; names that start with a dot are left out.

    Raises:
        VideoError: no folder, or no video in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VideoError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}; allowed: a folder")
    found = folder.rglob("*") if recursive else folder.iterdir()
    paths = [p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    if not paths:
        below = " or below" if recursive else ""
        raise VideoError(f"{folder}: no videos in it{below}; allowed: at least one of {' '.join(SUFFIXES)}")
    return sorted(paths)


def _size_of(comment: str) -> tuple[int, int] | None:
    """(width, height) from the comment of a file written here with odd sides."""
    try:
        size = json.loads(comment)["fewstep"]["size"]
        return int(size[0]), int(size[1])
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _has(encoder: str) -> bool:
    return encoder in av.codecs_available


def _reason(error: BaseException) -> str:
    """The last part of FFmpeg's message."""
    return str(getattr(error, "strerror", None) or error).splitlines()[0].rstrip(".") or type(error).__name__
