"""`fewstep upscale IN OUT`: enlarge a picture or a folder of pictures, each as a whole."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from fewstep.artifacts import load_as
from fewstep.command import UsageError
from fewstep.train.progress import bar
from fewstep_restoration.images import ImageError, Photo, list_photos, read_photo, write_photo
from fewstep_restoration.resize import matlab_bicubic
from fewstep_restoration.super_resolver import SuperResolver


@torch.no_grad()
def upscale(model: SuperResolver, photo: Photo, seed: int = 0, steps: int | None = None) -> Photo:
    """The enlarged photograph: colours by the model, alpha by bicubic; depth, greyness and metadata are kept.

    Raises:
        ValueError: more steps than the model's process has.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that a seed means the same noise everywhere
    rgb = model(photo.rgb[None].to(device) * 2 - 1, steps=steps, generator=generator)[0]
    alpha = None if photo.alpha is None else matlab_bicubic(photo.alpha[None], model.scale)[0].clamp(0, 1)
    return Photo(((rgb + 1) / 2).clamp(0, 1).cpu(), alpha, photo.bits, photo.grey, photo.icc, photo.exif)


def main(args: argparse.Namespace) -> int:
    """The verb: 0 all done, 1 some files failed (each named on stderr)."""
    source, target = Path(args.input), Path(args.output)
    if args.steps is not None and args.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {args.steps}")
    jobs = _jobs(source, target, args.recursive)
    same = next((file for file, to in jobs if file.resolve() == to.resolve()), None)
    if same is not None:
        raise UsageError(f"{same} would be written over: give another OUT")
    hint = "; `fewstep demo` makes one there" if args.model == "fewstep-demo/student" else ""
    model = load_as(args.model, SuperResolver, hint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    done, failed = [], []
    with bar() as progress:
        task = progress.add_task("upscaling", total=len(jobs), figures="")
        for file, to in jobs:
            start = time.perf_counter()
            try:
                result = upscale(model, read_photo(file), args.seed, args.steps)
                to.parent.mkdir(parents=True, exist_ok=True)
                write_photo(to, result)
                done.append(
                    {
                        "input": str(file),
                        "output": str(to),
                        "size": list(result.rgb.shape[:0:-1]),
                        "seconds": time.perf_counter() - start,
                    }
                )
            except ImageError as err:
                failed.append({"input": str(file), "error": str(err)})
                sys.stderr.write(f"fewstep upscale: {err}\n")
            progress.update(task, advance=1, figures=file.name)
    if args.json:
        print(
            json.dumps(
                {
                    "model": args.model,
                    "steps": args.steps or model.steps,
                    "scale": model.scale,
                    "done": done,
                    "failed": failed,
                },
                indent=2,
            )
        )
    return 1 if failed else 0


def _jobs(source: Path, target: Path, recursive: bool) -> list[tuple[Path, Path]]:
    """(input, output) files; a folder keeps its structure and file names."""
    if source.is_dir():
        if target.is_file():
            raise UsageError(f"{target} is a file, but {source} is a folder")
        return [(file, target / file.relative_to(source)) for file in list_photos(source, recursive=recursive)]
    if not source.exists():
        raise UsageError(f"{source} does not exist")
    return [(source, target / source.name if target.is_dir() else target)]
