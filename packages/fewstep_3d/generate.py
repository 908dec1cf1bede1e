"""`fewstep mesh WHAT OUT`: a mesh of a class, a text or a picture by a few-step student.

What a model takes tells what WHAT is: the name of a class, a text, or a picture (RGBA: a world-normal map with the shape as alpha).
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fewstep.artifacts import load_as
from fewstep.command import UsageError
from fewstep.denoiser import Cond
from fewstep_3d.export import check_output, facts, finished, report
from fewstep_3d.fields import FieldError
from fewstep_3d.fields import Grid as FieldGrid
from fewstep_3d.mesh_files import MeshError, write_mesh
from fewstep_3d.meshes import extracted
from fewstep_3d.texts import hashed
from fewstep_3d.triplane_generator import TriplaneGenerator


def main(args: argparse.Namespace) -> int:
    """The verb."""
    out = check_output(args)
    if args.steps is not None and args.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {args.steps}")
    model = loaded(args.model)
    cond = condition(model, args.what)
    model(cond, args.steps, torch.Generator().manual_seed(args.seed), 8)  # the first call pays for torch's own setup
    start = time.perf_counter()
    fields = model(cond, args.steps, torch.Generator().manual_seed(args.seed), args.resolution)
    made = time.perf_counter()
    try:
        mesh = extracted(FieldGrid(fields.values[:1]))
    except FieldError as err:
        raise FieldError(f"{args.what}: the model made no surface with seed {args.seed}: {err}") from err
    mesh = finished(mesh, args)
    meshed = time.perf_counter()
    write_mesh(out, mesh)
    seconds = {"field": made - start, "surface": meshed - made, "file": time.perf_counter() - meshed}
    told = {"input": args.what, "output": str(out), "seed": args.seed, "steps": args.steps or model.steps}
    report(args, told | {"seconds": seconds} | facts(mesh))
    return 0


def loaded(source: str) -> TriplaneGenerator:
    """The student of an artifact.

    Raises:
        ArtifactError: none there, or of another kind.
    """
    return load_as(source, TriplaneGenerator, "; `fewstep demo 3d` trains one")


def condition(model: TriplaneGenerator, what: str) -> Cond:
    """What the model is told, batch of one.

    Raises:
        ValueError: an unknown class, a picture that cannot be read.
    """
    if "label" in model.net.wanted:
        return {"label": torch.tensor([model.label(what)])}
    if "image" in model.net.wanted:
        return {"image": picture(Path(what))}
    return {"text": hashed(what, model.net.text)[None]}


def picture(file: Path, side: int = 24) -> Tensor:
    """An RGBA normal map as a condition, (1, 4, side, side): normals times alpha, 2 alpha - 1.

    Raises:
        MeshError: no picture, or one without alpha.
    """
    try:
        with Image.open(file) as image:
            if "A" not in image.getbands():
                raise MeshError(
                    f"{file}: the picture has no alpha channel, which tells the object from what is behind it"
                )
            rgba = np.asarray(image.convert("RGBA").resize((side, side), Image.Resampling.BOX), np.float32) / 255
    except (OSError, UnidentifiedImageError) as err:
        raise MeshError(f"{file}: no picture that can be read; this model makes meshes of pictures") from err
    x = torch.from_numpy(rgba)
    return torch.cat([(2 * x[..., :3] - 1) * x[..., 3:], 2 * x[..., 3:] - 1], -1).permute(2, 0, 1)[None]
