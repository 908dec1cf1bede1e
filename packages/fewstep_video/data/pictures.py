"""Sets of pictures beside clips, for critics of looks: batches get a further `image` (B, C, H, W) in [-1, 1]."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import cv2
import torch
from torch import Tensor

from fewstep.train.loader import Drawable, Endless
from fewstep_video.data.module import VideoData
from fewstep_video.files import VideoError, from_bytes
from fewstep_video.worlds import World

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Pictures(Protocol):
    """A source of pictures."""

    def images(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, C, H, W) in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Stills:
    """Single frames of a world: one with sharper edges than that of the clips, for instance."""

    world: World

    def images(self, n: int, generator: torch.Generator) -> Tensor:
        """A random frame of each of n fresh clips."""
        video = self.world.batch(n, generator)["video"]
        at = torch.randint(video.shape[2], (n,), generator=generator)
        return video[torch.arange(n), :, at]


class PictureFolder:
    """Pictures of a folder, random squares of at least half the shorter side, made `size` pixels wide.

    Args:
        folder: with at least one picture in it; size: pixels of a side.
    Raises:
        VideoError: no folder, no pictures, or one that cannot be read.
    """

    def __init__(self, folder: str, size: int = 32) -> None:
        self.folder, self.size = folder, size
        found = (
            sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in PICTURES) if Path(folder).is_dir() else []
        )
        if not found:
            raise VideoError(f"{folder}: no pictures; allowed: a folder with at least one of {' '.join(PICTURES)}")
        self.files = found

    def images(self, n: int, generator: torch.Generator) -> Tensor:
        """Files and squares are drawn."""
        index = torch.randint(len(self.files), (n,), generator=generator).tolist()
        return torch.stack([self.square(self.files[i], generator) for i in index])

    def square(self, file: Path, generator: torch.Generator) -> Tensor:
        """(3, size, size)."""
        pixels = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if pixels is None:
            raise VideoError(f"{file}: cannot be read; allowed: a picture")
        height, width = pixels.shape[:2]
        share = 0.5 + 0.5 * float(torch.rand((), generator=generator))
        side = max(round(share * min(height, width)), 1)
        top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in (height, width))
        cut = pixels[top : top + side, left : left + side, ::-1].copy()
        how = cv2.INTER_AREA if side >= self.size else cv2.INTER_LINEAR
        return from_bytes(torch.from_numpy(cv2.resize(cut, (self.size, self.size), interpolation=how)).permute(2, 0, 1))


@dataclass(frozen=True)
class _FreshBeside:
    clips: Endless
    pictures: Pictures

    def batch(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {**self.clips.batch(n, generator), "image": self.pictures.images(n, generator)}


@dataclass(frozen=True)
class _DrawnBeside:
    clips: Drawable
    pictures: Pictures

    def __len__(self) -> int:
        return len(self.clips)

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {**self.clips.draw(index, generator), "image": self.pictures.images(1, generator)[0]}


class WithPictures(VideoData):
    """Clips of another data module with pictures beside them, for training alone.

    Args:
        clips: the other module, whose own batch size is not used.
        pictures: `Stills`, `PictureFolder`.
        batch_size, workers, seed: as in `VideoData`.
    """

    def __init__(
        self, clips: VideoData, pictures: Stills | PictureFolder, batch_size: int = 64, workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.clips, self.pictures = clips, pictures

    def setup(self, stage: str | None = None) -> None:
        self.clips.setup(stage)
        clips: Any = self.clips.train
        fresh = hasattr(clips, "batch")
        both = _FreshBeside(cast(Endless, clips), self.pictures) if fresh else _DrawnBeside(clips, self.pictures)
        self.train, self.val = both, self.clips.val
