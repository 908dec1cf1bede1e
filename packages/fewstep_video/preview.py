"""Small animated pictures (WebP, GIF) and frames as PNG, by Pillow: all frames are held in memory, so these are for previews."""

import warnings
from pathlib import Path

from torch import Tensor

from fewstep.whole_file import whole
from fewstep_video.files import VideoError, to_bytes

PREVIEW_SUFFIXES = (".webp", ".gif")
LARGE = 2 * 2**20


def write_preview(path: str | Path, video: Tensor, fps: float) -> None:
    """A clip (C, F, H, W) in [-1, 1] as an animated .webp or .gif that repeats for ever; warns of files over 2 MB.

    Raises:
        VideoError: another extension, another shape, no frames, or a missing folder.
    """
    path = Path(path)
    if path.suffix.lower() not in PREVIEW_SUFFIXES:
        raise VideoError(f"{path}: cannot write {path.suffix or 'no extension'}; allowed: {' '.join(PREVIEW_SUFFIXES)}")
    if not path.parent.is_dir():
        raise VideoError(f"{path}: folder {path.parent} does not exist; allowed: an existing folder")
    if video.ndim != 4 or video.shape[0] not in (1, 3) or 0 in video.shape or not fps > 0:
        raise VideoError(f"{path}: {tuple(video.shape)} at {fps} frames per second; allowed: (1 or 3, F, H, W)")
    first, *rest = _pictures(video)
    kind = path.suffix.lower()[1:]
    options = {"method": 4, "quality": 90} if kind == "webp" else {"disposal": 1}
    with whole(path) as part:
        first.save(part, format=kind, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, **options)
    if (size := path.stat().st_size) > LARGE:
        warnings.warn(f"{path}: {size / 2**20:.1f} MB; mp4 files are far smaller", stacklevel=2)


def write_picture(path: str | Path, picture: Tensor) -> None:
    """A picture (3, H, W) in [0, 1], such as a contact sheet, as PNG, whole or not at all."""
    with whole(path) as part:
        _pictures(2 * picture[:, None] - 1)[0].save(part, format="png")


def write_frames(folder: str | Path, video: Tensor, first: int = 0) -> None:
    """The frames of a clip (C, F, H, W) in [-1, 1] as folder/00000.png and on, numbered from `first`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(_pictures(video)):
        with whole(folder / f"{first + i:05d}.png") as part:
            picture.save(part, format="png")


def _pictures(video: Tensor) -> list:
    from PIL import Image

    frames = to_bytes(video).expand(3, -1, -1, -1).permute(1, 2, 3, 0).contiguous().numpy()
    return [Image.fromarray(frame) for frame in frames]
