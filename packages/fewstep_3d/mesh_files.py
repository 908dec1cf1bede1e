"""Read and write meshes: glb, obj, ply, stl, through trimesh. glb is y-up by its standard; the others keep z up.

html is written alone: one page with the glb and a viewer that turns it, which needs no network (trimesh's own, three.js).

(x, y, z) of this package -> (x, z, -y) in a glb
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.obj import export_obj
from trimesh.viewer.notebook import scene_to_html

from fewstep.whole_file import whole

FORMATS = (".glb", ".obj", ".ply", ".stl")
WRITTEN = (*FORMATS, ".html")
TO_Y_UP = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)
MOST_FACES = 2_000_000


class MeshError(ValueError):
    """A mesh that cannot be read, used or written; one line: the file, what is wrong, what is allowed."""


def check_format(file: str | Path, formats: Sequence[str] = WRITTEN) -> Path:
    """The file as a path.

    Raises:
        MeshError: an extension that is not among the formats, those that are written here unless others are given.
    """
    file = Path(file)
    if file.suffix.lower() not in formats:
        raise MeshError(f"{file}: meshes are {' '.join(formats)}, not {file.suffix or 'a file without an extension'}")
    return file


def write_mesh(file: str | Path, mesh: trimesh.Trimesh) -> None:
    """Write one mesh, whole or not at all; the extension tells the format.

    Raises:
        MeshError: an unknown extension, a mesh that is empty or not finite.
    """
    file = check_format(file)
    check(mesh, str(file))
    mesh = mesh.copy(include_cache=True)  # normals that the field gave are kept
    if file.suffix.lower() in (".glb", ".html"):
        mesh.apply_transform(TO_Y_UP)
    _ = mesh.vertex_normals  # so that they are written
    kind = file.suffix.lower()[1:]
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "obj":
        _write_obj(file, mesh)
        return
    if kind in ("glb", "html"):
        scene = trimesh.Scene(mesh)
        data = export_glb(scene, include_normals=True) if kind == "glb" else scene_to_html(scene)
    else:
        data = mesh.export(file_type=kind)
    with whole(file) as part:
        part.write_bytes(data if isinstance(data, bytes) else str(data).encode())


def _write_obj(file: Path, mesh: trimesh.Trimesh) -> None:
    """obj keeps its material and texture in files beside it, which are named after it."""
    text, others = export_obj(
        mesh, include_normals=True, return_texture=True, mtl_name=f"{file.stem}.mtl", write_texture=False
    )
    names = {name: f"{file.stem}{Path(name).suffix}" for name in others}
    for name, data in others.items():
        raw = data if isinstance(data, bytes) else str(data).encode()
        for old, new in names.items():
            raw = raw.replace(old.encode(), new.encode()) if name.endswith(".mtl") else raw
        with whole(file.with_name(names[name])) as part:
            part.write_bytes(raw)
    with whole(file) as part:
        part.write_text(text)


def read_mesh(file: str | Path, y_up: bool = False) -> trimesh.Trimesh:
    """One mesh of a file, scenes joined, z up; y_up: the file is y-up although it is no glb.

    Raises:
        MeshError: missing, unreadable, empty, not finite, too many faces.
    """
    file = check_format(file, FORMATS)
    if not file.is_file():
        raise MeshError(f"{file}: no such file")
    try:
        mesh = trimesh.load(file, force="mesh", process=False)
    except Exception as err:  # trimesh's readers raise whatever the content leads them to
        raise MeshError(f"{file}: not a mesh that can be read: {' '.join(str(err).split())[:200]}") from err
    if not isinstance(mesh, trimesh.Trimesh):
        raise MeshError(f"{file}: holds no triangles")
    if file.suffix.lower() == ".glb" or y_up:
        mesh.apply_transform(TO_Y_UP.T)
    check(mesh, str(file))
    if file.suffix.lower() == ".stl":  # which repeats every vertex for each of its faces
        mesh.merge_vertices()
    return mesh


def check(mesh: trimesh.Trimesh, name: str) -> None:
    """Raises MeshError for meshes that are empty, not finite, or huge."""
    if not len(mesh.faces) or not len(mesh.vertices):
        raise MeshError(f"{name}: the mesh is empty: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces")
    if not np.isfinite(mesh.vertices).all():
        bad = int((~np.isfinite(mesh.vertices)).any(1).sum())
        raise MeshError(f"{name}: {bad} of {len(mesh.vertices)} vertices are not finite")
    if len(mesh.faces) > MOST_FACES:
        raise MeshError(f"{name}: {len(mesh.faces)} faces; at most {MOST_FACES} are taken")
    if float(np.ptp(mesh.vertices, axis=0).max()) <= 0:
        raise MeshError(f"{name}: all vertices are at one place")


def normalised(mesh: trimesh.Trimesh, extent: float = 1.5, welded: bool = True) -> trimesh.Trimesh:
    """Centred, its longest side `extent` long (the cube has 2); vertices that differ by their texture alone are merged if welded."""
    out = mesh.copy()
    low, high = out.bounds
    out.apply_translation(-(low + high) / 2)
    out.apply_scale(extent / float((high - low).max()))
    if welded:
        out.merge_vertices(merge_tex=True, merge_norm=True)
        out.fix_normals()
    return out
