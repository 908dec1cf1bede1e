"""Frames as they come: of a file, or raw on stdin; as blocks for a model, in memory that holds one block."""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from fewstep_video.files import VideoError, from_bytes


def raw_frames(stream: BinaryIO, width: int, height: int) -> Iterator[Tensor]:
    """Frames (3, H, W) uint8 of rgb24 bytes.

    Raises:
        VideoError: no frame at all, or a last one that is not whole.
    """
    size, count = 3 * width * height, 0
    while True:
        data = stream.read(size)
        while data and len(data) < size and (more := stream.read(size - len(data))):
            data += more
        if not data:
            break
        if len(data) < size:
            raise VideoError(
                f"stdin: frame {count} has {len(data)} of {size} bytes; allowed: whole frames of {width}x{height} rgb24"
            )
        yield torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(height, width, 3).permute(2, 0, 1)
        count += 1
    if not count:
        raise VideoError(f"stdin: no frames; allowed: at least one of {width}x{height} rgb24")


def fitted(frame: Tensor, channels: int, height: int, width: int) -> Tensor:
    """(3, H, W) uint8 -> (channels, height, width) in [-1, 1]: cut to the shape of the picture around its middle, then averaged or interpolated."""
    h, w = frame.shape[1:]
    scale = min(h / height, w / width)
    inner = max(round(height * scale), 1), max(round(width * scale), 1)
    top, left = (h - inner[0]) // 2, (w - inner[1]) // 2
    cut = frame[:, top : top + inner[0], left : left + inner[1]].permute(1, 2, 0).numpy()
    how = cv2.INTER_AREA if scale >= 1 else cv2.INTER_LINEAR
    sized = cv2.resize(np.ascontiguousarray(cut), (width, height), interpolation=how)
    pixels = from_bytes(torch.from_numpy(sized).permute(2, 0, 1))
    return pixels if channels == 3 else pixels.mean(0, keepdim=True).expand(channels, -1, -1)


class Block(NamedTuple):
    """frames: (1, C, size, H, W), the last one repeated where the input ended; count: how many are the input's."""

    frames: Tensor
    count: int


def blocks(frames: Iterator[Tensor], size: int, most: int | None = None) -> Iterator[Block]:
    """Frames (C, H, W) in blocks; at most so many frames."""
    held: list[Tensor] = []
    for seen, frame in enumerate(frames, 1):
        held.append(frame)
        if len(held) == size or seen == most:
            yield _block(held, size)
            held = []
        if seen == most:
            return
    if held:
        yield _block(held, size)


def _block(held: list[Tensor], size: int) -> Block:
    whole = held + [held[-1]] * (size - len(held))
    return Block(torch.stack(whole, 1)[None], len(held))
