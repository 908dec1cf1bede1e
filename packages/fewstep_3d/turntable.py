"""`fewstep turntable IN OUT.gif|mp4`: one turn around a mesh or a fitted object."""

import argparse
import json
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor

from fewstep.command import UsageError
from fewstep.whole_file import whole
from fewstep_3d.cameras import Cameras, orbit
from fewstep_3d.export import source_mesh
from fewstep_3d.mesh_files import normalised
from fewstep_3d.mesh_views import Views, mesh_views

LIGHT = (0.4, -0.5, 0.8)
BACKGROUND = 1.0


def main(args: argparse.Namespace) -> int:
    """The verb."""
    out, start = Path(args.output), time.perf_counter()
    if out.suffix.lower() not in (".gif", ".mp4"):
        raise UsageError(f"{out}: a film is .gif or .mp4")
    if not 2 <= args.frames <= 1000 or not 16 <= args.size <= 1024 or args.size % 2:
        raise UsageError(f"a turn has 2 to 1000 frames of an even 16 to 1024 pixels, not {args.frames} of {args.size}")
    if not -90 <= args.elevation <= 90:
        raise UsageError(f"--elevation is -90 to 90 degrees, not {args.elevation}")
    mesh = normalised(source_mesh(args.input, 96, args.y_up), welded=False)
    cameras = turn(args.frames, args.elevation, args.size)
    write_film(out, pictures(mesh_views(mesh, cameras), args.channels))
    facts = {"input": args.input, "output": str(out), "frames": args.frames, "seconds": time.perf_counter() - start}
    line = f"{out}: {args.frames} frames of {args.size} pixels in {facts['seconds']:.1f} s"
    print(json.dumps(facts, indent=2) if args.json else line)
    return 0


def turn(frames: int, elevation: float = 15.0, size: int = 128, distance: float = 3.0) -> Cameras:
    """Cameras of one turn."""
    return orbit(torch.arange(frames) * 360.0 / frames, elevation, distance, 40.0, (size, size))


def pictures(views: Views, channels: str = "shaded") -> Tensor:
    """(V, H, W, 3) in [0, 1] over white: colours lit from above, colours as they are, or world normals.

    Raises:
        ValueError: another name; views without what is asked for.
    """
    mask, normals = views.mask, views.normals
    if mask is None or normals is None:
        raise ValueError("pictures are made of views with masks and normals")
    over = (1 - mask[..., None]) * BACKGROUND
    if channels == "rgb":
        return views.colours + over
    if channels == "normal":
        return 0.5 * (normals + mask[..., None]) + over
    if channels == "shaded":
        light = torch.nn.functional.normalize(torch.tensor(LIGHT), dim=0)
        shade = 0.35 * mask + 0.65 * (0.5 * mask + 0.5 * (normals * light).sum(-1))
        return (views.colours * (shade / mask.clamp_min(1e-6))[..., None] * 1.1).clamp(0, 1) + over
    raise ValueError(f"channels are shaded, rgb or normal, not {channels}")


def write_film(file: Path, frames: Tensor, fps: int = 18) -> None:
    """(V, H, W, 3) in [0, 1] as gif or mp4 (H.264), whole or not at all."""
    images = (frames.clamp(0, 1) * 255).round().byte().numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = file.suffix.lower()
    with whole(file) as part:
        if kind == ".gif":
            data = iio.imwrite("<bytes>", images, extension=".gif", duration=1000 / fps, loop=0)
        else:
            data = iio.imwrite(
                "<bytes>", np.ascontiguousarray(images), extension=".mp4", plugin="pyav", codec="h264", fps=fps
            )
        part.write_bytes(data or b"")
