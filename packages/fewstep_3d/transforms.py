"""Multi-view pictures in the layouts of NeRF's Blender set and of nerfstudio: a folder with transforms.json, or transforms_train.json.

Blender: `camera_angle_x` (radians) and `frames` of `file_path` without extension and `transform_matrix`. nerfstudio: `fl_x, fl_y, cx,
cy, w, h` for all or per frame. Poses are camera-to-world, camera axes right, up, backward. Distortion is not undone.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fewstep.whole_file import whole
from fewstep_3d.cameras import CameraError, Cameras
from fewstep_3d.mesh_views import Views

NAMES = ("transforms.json", "transforms_train.json")
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


class TransformsError(ValueError):
    """A multi-view folder that cannot be used; one line."""


class Frames(NamedTuple):
    """What a transforms file lists: pictures and their cameras, positions times `scale`; alpha: whether the pictures have it."""

    file: Path
    images: list[Path]
    cameras: Cameras
    scale: float
    alpha: bool


def read_views(folder: str | Path, background: str | None = None, scale: float | None = None) -> Views:
    """The pictures and cameras of a folder.

    Args:
        background: "black" or "white" behind objects in pictures without alpha.
        scale: of the positions; where not given, so that the median camera is at distance 3 of the origin.
    Raises:
        TransformsError: missing or wrong files, no frames, pictures of different sizes, singular poses, no alpha and no background.
    """
    frames = read_frames(transforms_file(folder), scale)
    behind = behind_of(frames, background)
    images = torch.from_numpy(np.stack([_image(path, frames.alpha) for path in frames.images]))
    if not frames.alpha:
        return Views(frames.cameras, images, None, None, behind)
    mask = images[..., 3]
    colours = images[..., :3] * mask[..., None] + (1 - mask[..., None]) * behind
    return Views(frames.cameras, colours, mask, None, behind)


def read_frames(file: Path, scale: float | None = None) -> Frames:
    """What a file lists; of the pictures only their heads are read. Args and errors: see `read_views`."""
    meta = _parsed(file)
    listed = meta.get("frames")
    if not isinstance(listed, list) or not listed:
        raise TransformsError(f"{file}: no frames; `frames` is a list of pictures with their transform_matrix")
    paths = [_path(file, frame) for frame in listed]
    heads = [_head(path) for path in paths]
    sizes = sorted({size for size, _ in heads})
    if len(sizes) > 1:
        raise TransformsError(f"{file}: pictures have different sizes: {', '.join(f'{h}x{w}' for h, w in sizes)}")
    if len({alpha for _, alpha in heads}) > 1:
        raise TransformsError(f"{file}: some pictures have an alpha channel and some have none")
    c2w = torch.stack([_pose(file, i, frame) for i, frame in enumerate(listed)])
    numbers = torch.tensor([_intrinsics(file, i, {**meta, **frame}, sizes[0]) for i, frame in enumerate(listed)])
    distance = float(c2w[:, :3, 3].norm(dim=1).median())
    factor = 3 / max(distance, 1e-9) if scale is None else scale
    c2w[:, :3, 3] *= factor
    try:
        cameras = Cameras(c2w, numbers[:, :2], numbers[:, 2:], sizes[0])
    except CameraError as err:
        raise TransformsError(f"{file}: {err}") from err
    return Frames(file, paths, cameras, factor, heads[0][1])


def behind_of(frames: Frames, background: str | None) -> float:
    """The grey behind objects: black unless given.

    Raises:
        TransformsError: pictures without alpha, and none given.
    """
    if not frames.alpha and background is None:
        raise TransformsError(
            f"{frames.file}: pictures have no alpha channel: say what is behind the object (black or white)"
        )
    return {"black": 0.0, "white": 1.0}[background or "black"]


def transforms_file(folder: str | Path, names: tuple[str, ...] = NAMES) -> Path:
    """The first of these files that the folder has.

    Raises:
        TransformsError: it has none of them.
    """
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise TransformsError(f"{folder}: no {' or '.join(names)}")


def write_views(folder: str | Path, views: Views, split: str = "train") -> None:
    """Write views in the Blender layout: transforms_{split}.json and {split}/r_*.png, with alpha where there are masks.

    Raises:
        TransformsError: cameras with different lenses, or with a centre that is not the middle, which the layout cannot hold.
    """
    folder, cameras = Path(folder), views.cameras
    height, width = cameras.size
    lens = torch.cat([cameras.focal, cameras.centre], 1)
    focal = float(lens[0, 0])
    if (lens - lens.new_tensor([focal, focal, width / 2, height / 2])).abs().max() > 1e-3 * focal:
        raise TransformsError(f"{folder}: the Blender layout holds one focal length, and centres in the middle alone")
    (folder / split).mkdir(parents=True, exist_ok=True)
    frames = []
    for i, image in enumerate(_straight(views)):
        Image.fromarray((image.clamp(0, 1) * 255).round().byte().numpy()).save(folder / split / f"r_{i}.png")
        frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": cameras.c2w[i].tolist()})
    with whole(folder / f"transforms_{split}.json") as part:
        part.write_text(json.dumps({"camera_angle_x": 2 * math.atan(0.5 * width / focal), "frames": frames}, indent=1))


def _straight(views: Views) -> Tensor:
    """(V, H, W, 4) with colours as they are without the background, or (V, H, W, 3) where there is no mask."""
    if views.mask is None:
        return views.colours
    mask = views.mask[..., None]
    own = (views.colours - (1 - mask) * views.background) / mask.clamp_min(1e-6)
    return torch.cat([own * (mask > 0), mask], -1)


def _parsed(file: Path) -> dict[str, Any]:
    try:
        meta = json.loads(file.read_text())
    except (ValueError, OSError) as err:
        raise TransformsError(f"{file}: not JSON: {' '.join(str(err).split())[:200]}") from err
    if not isinstance(meta, dict):
        raise TransformsError(f"{file}: holds {type(meta).__name__}, not an object with `frames`")
    bent = [k for k in DISTORTION if meta.get(k)]
    if bent:
        raise TransformsError(
            f"{file}: lens distortion ({', '.join(bent)}) is not undone here: undistort the pictures first"
        )
    return meta


def _path(file: Path, frame: Any) -> Path:
    name = frame.get("file_path") if isinstance(frame, dict) else None
    if not isinstance(name, str):
        raise TransformsError(f"{file}: a frame without file_path")
    path = file.parent / name
    return path if path.suffix else path.with_suffix(".png")


def _head(path: Path) -> tuple[tuple[int, int], bool]:
    """((height, width), whether there is alpha)."""
    try:
        with Image.open(path) as image:
            return (image.height, image.width), "A" in image.getbands() or "transparency" in image.info
    except (OSError, UnidentifiedImageError) as err:
        raise TransformsError(f"{path}: no picture that can be read") from err


def _image(path: Path, alpha: bool) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGBA" if alpha else "RGB"), np.float32) / 255
    except OSError as err:
        raise TransformsError(f"{path}: no picture that can be read") from err


def _pose(file: Path, i: int, frame: dict[str, Any]) -> Tensor:
    try:
        pose = torch.tensor(frame.get("transform_matrix"), dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as err:
        raise TransformsError(f"{file}: frame {i} has no transform_matrix of numbers") from err
    if pose.shape == (3, 4):
        pose = torch.cat([pose, torch.tensor([[0.0, 0.0, 0.0, 1.0]])])
    if pose.shape != (4, 4):
        raise TransformsError(f"{file}: the transform_matrix of frame {i} is {tuple(pose.shape)}, not (4, 4)")
    return pose


def _intrinsics(file: Path, i: int, meta: dict[str, Any], size: tuple[int, int]) -> list[float]:
    """fx, fy, cx, cy for the size of the pictures, which may be smaller than what was calibrated."""
    height, width = size
    try:
        if "fl_x" in meta:
            kx, ky = width / meta.get("w", width), height / meta.get("h", height)
            fx = float(meta["fl_x"])
            fy = float(meta.get("fl_y", fx))
            cx, cy = meta.get("cx", width / kx / 2), meta.get("cy", height / ky / 2)
            return [fx * kx, fy * ky, float(cx) * kx, float(cy) * ky]
        focal = 0.5 * width / math.tan(0.5 * float(meta["camera_angle_x"]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as err:
        raise TransformsError(f"{file}: frame {i} has neither fl_x nor camera_angle_x as a usable number") from err
    return [focal, focal, width / 2, height / 2]
