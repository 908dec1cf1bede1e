"""Multi-view pictures in the layouts of NeRF's Blender set and of nerfstudio: a folder with transforms.json (or transforms_train.json).

Blender: `camera_angle_x` (radians) and `frames` of `file_path` without extension and `transform_matrix`. nerfstudio: `fl_x, fl_y, cx,
cy, w, h` for all or per frame. Poses are camera-to-world, camera axes right, up, backward. Distortion is not undone.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fewstep_3d.cameras import CameraError, Cameras
from fewstep_3d.mesh_views import Views

NAMES = ("transforms.json", "transforms_train.json")
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


class TransformsError(ValueError):
    """A multi-view folder that cannot be used; one line."""


def read_views(folder: str | Path, background: str | None = None, scale: float | None = None) -> Views:
    """The pictures and cameras of a folder.

    Args:
        background: "black" or "white" behind objects in pictures without alpha.
        scale: of the positions; where not given, so that the median camera is at distance 3 of the origin.
    Raises:
        TransformsError: missing or wrong files, no frames, pictures of different sizes, singular poses, no alpha and no background.
    """
    file = _find(Path(folder))
    meta = _parsed(file)
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        raise TransformsError(f"{file}: no frames; `frames` is a list of pictures with their transform_matrix")
    images = [_image(file, frame) for frame in frames]
    sizes = {x.shape[:2] for x in images}
    if len(sizes) > 1:
        raise TransformsError(
            f"{file}: pictures have different sizes: {', '.join(f'{h}x{w}' for h, w in sorted(sizes))}"
        )
    (size,) = sizes
    c2w = torch.stack([_pose(file, i, frame) for i, frame in enumerate(frames)])
    numbers = torch.tensor([_intrinsics(file, i, {**meta, **frame}, size) for i, frame in enumerate(frames)])
    distance = float(c2w[:, :3, 3].norm(dim=1).median())
    factor = 3 / max(distance, 1e-9) if scale is None else scale
    c2w[:, :3, 3] *= factor
    try:
        cameras = Cameras(c2w, numbers[:, :2], numbers[:, 2:], (int(size[0]), int(size[1])))
    except CameraError as err:
        raise TransformsError(f"{file}: {err}") from err
    return _views(file, cameras, torch.from_numpy(np.stack(images)), background)


def _views(file: Path, cameras: Cameras, images: Tensor, background: str | None) -> Views:
    rgb, behind = images[..., :3], {"black": 0.0, "white": 1.0}.get(background or "black", 0.0)
    if images.shape[-1] == 4:
        mask = images[..., 3]
        return Views(cameras, rgb * mask[..., None] + (1 - mask[..., None]) * behind, mask, None, behind)
    if background is None:
        raise TransformsError(f"{file}: pictures have no alpha channel: say what is behind the object (black or white)")
    return Views(cameras, rgb, None, None, behind)


def _find(folder: Path) -> Path:
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    raise TransformsError(f"{folder}: no {' or '.join(NAMES)}")


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


def _image(file: Path, frame: Any) -> np.ndarray:
    name = frame.get("file_path") if isinstance(frame, dict) else None
    if not isinstance(name, str):
        raise TransformsError(f"{file}: a frame without file_path")
    path = file.parent / name
    path = path if path.suffix else path.with_suffix(".png")
    try:
        with Image.open(path) as image:
            kind = "RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"
            return np.asarray(image.convert(kind), np.float32) / 255
    except (OSError, UnidentifiedImageError) as err:
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
