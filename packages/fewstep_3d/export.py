"""`fewstep mesh export IN OUT`: an object's artifact, that of a run of nerfstudio, or a mesh file, as glb, obj, ply or stl."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import trimesh

import fewstep
from fewstep.artifacts import ArtifactError
from fewstep.command import UsageError
from fewstep_3d.fields import Field
from fewstep_3d.mesh_files import check_format, read_mesh, write_mesh
from fewstep_3d.mesh_views import surface_colours
from fewstep_3d.meshes import decimated, largest
from fewstep_3d.nerfstudio.run_folder import run_artifact
from fewstep_3d.scene import Scene
from fewstep_3d.texture import Colours, textured
from fewstep_3d.triplane_generator import TriplaneGenerator


def main(args: argparse.Namespace) -> int:
    """The verb."""
    out, start = check_output(args), time.perf_counter()
    args.input = source(args)
    scene = load_scene(args.input) if Path(args.input).is_dir() else None
    mesh = read_mesh(args.input, args.y_up) if scene is None else scene.mesh(args.resolution)
    mesh = finished(mesh, args, scene and scene.field())
    write_mesh(out, mesh)
    report(args, {"input": args.input, "output": str(out), "seconds": time.perf_counter() - start} | facts(mesh))
    return 0


def source(args: argparse.Namespace) -> str:
    """IN, or the artifact of the run that --ns-config names.

    Raises:
        UsageError: both or none of them, a run without an artifact.
    """
    if (args.input is None) == (args.ns_config is None):
        raise UsageError("either IN or --ns-config is needed, and not both")
    return args.input or str(run_artifact(args.ns_config))


def check_output(args: argparse.Namespace) -> Path:
    """Raises UsageError or MeshError for options that cannot be met, before anything is computed."""
    for name in ("faces", "texture"):
        if getattr(args, name) is not None and getattr(args, name) < 4:
            raise UsageError(f"--{name} is at least 4, not {getattr(args, name)}")
    if not 8 <= args.resolution <= 512:
        raise UsageError(f"--resolution is 8 to 512 corners per axis, not {args.resolution}")
    return check_format(args.output)


def load_scene(source: str) -> Scene:
    """The object in an artifact folder.

    Raises:
        ArtifactError: no artifact, or one of something else.
    """
    scene = fewstep.load(source)
    if not isinstance(scene, Scene):
        hint = f"; try `fewstep mesh CLASS OUT --model {source}`" if isinstance(scene, TriplaneGenerator) else ""
        raise ArtifactError(f"{source} holds a {type(scene).__name__}; an object (`mesh fit`) is needed{hint}")
    return scene


def source_mesh(source: str, resolution: int, y_up: bool = False) -> trimesh.Trimesh:
    """The mesh of a file (which may be y-up), or the surface of the object in an artifact folder.

    Raises:
        ArtifactError, MeshError, FieldError: see there.
    """
    return load_scene(source).mesh(resolution) if Path(source).is_dir() else read_mesh(source, y_up)


def finished(mesh: trimesh.Trimesh, args: argparse.Namespace, field: Field | None = None) -> trimesh.Trimesh:
    """The largest component, decimated, textured, as the options ask; texels are coloured by the field, or as the mesh is."""
    if not args.whole:
        mesh = largest(mesh)
    fine = mesh
    if args.faces:
        mesh = decimated(mesh, args.faces)
    if not args.texture:
        return mesh
    return textured(mesh, nearest_colours(fine) if field is None else field_colours(field), args.texture)


def field_colours(field: Field) -> Colours:
    """Those of a field at the points."""

    def colours(points: np.ndarray, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            parts = [field(p) for p in torch.from_numpy(points).float()[None].split(2**16, 1)]
        return torch.cat([v.features[0, :, :3] for v in parts], 0).numpy() if parts else np.zeros((0, 3))

    return colours


def nearest_colours(mesh: trimesh.Trimesh) -> Colours:
    """Those of the nearest points of a mesh."""

    def colours(points: np.ndarray, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        at, _, triangle = trimesh.proximity.closest_point(mesh, points)
        return surface_colours(mesh, triangle, trimesh.triangles.points_to_barycentric(mesh.triangles[triangle], at))

    return colours


def facts(mesh: trimesh.Trimesh) -> dict[str, object]:
    """What a mesh is, for reports."""
    return {
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "watertight": bool(mesh.is_watertight),
        "volume": float(mesh.volume),
    }


def report(args: argparse.Namespace, figures: dict[str, object]) -> None:
    """As JSON, or one line."""
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        closed = "watertight" if figures["watertight"] else "open"
        print(f"{figures['output']}: {figures['vertices']} vertices, {figures['faces']} faces, {closed}")
