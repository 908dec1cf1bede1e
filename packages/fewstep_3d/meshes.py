"""From fields to triangle meshes: marching cubes, the largest component, decimation, vertex colours.

Signed distances are negative inside; faces come out counter-clockwise seen from outside, so that volumes are positive.
"""

from collections.abc import Callable

import numpy as np
import torch
import trimesh
from scipy.spatial import KDTree
from skimage.measure import marching_cubes
from torch import Tensor
from trimesh.visual import ColorVisuals

from fewstep_3d.fields import Field, FieldError, Grid, tabulated

BIGGEST = 512


@torch.no_grad()
def extracted(field: Field, side: int = 96, like: Tensor | None = None, level: float = 0.0) -> trimesh.Trimesh:
    """The surface sdf = level of a field of one object, with its first three features as vertex colours.

    Args:
        side: corners of the grid along each axis; a `Grid` keeps its own.
        like: a tensor of the field's dtype and device; float32 on the CPU unless given.
    Raises:
        FieldError: no surface inside of the cube, numbers that are not finite, an impossible side.
    """
    if not 4 <= side <= BIGGEST:
        raise FieldError(f"a surface is looked for on 4 to {BIGGEST} corners per axis, not {side}")
    grid = field if isinstance(field, Grid) else tabulated(field, side, torch.zeros(()) if like is None else like)
    sdf = grid.values[0, 0].detach().cpu().float().numpy()
    vertices, faces, normals = surface(sdf, level)
    mesh = trimesh.Trimesh(vertices, faces, vertex_normals=normals, process=False)
    features = field(torch.from_numpy(vertices)[None].to(grid.values)).features
    return coloured(mesh, features[0, :, :3]) if features.shape[-1] >= 3 else mesh


def surface(sdf: np.ndarray, level: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices (N, 3) in [-1, 1]^3, outward faces (M, 3) and outward normals (N, 3), the field's gradients, of (G, G, G) signed distances.

    Raises:
        FieldError: no surface, numbers that are not finite.
    """
    if not np.isfinite(sdf).all():
        raise FieldError(f"{int((~np.isfinite(sdf)).sum())} of {sdf.size} signed distances are not finite")
    low, high = float(sdf.min()), float(sdf.max())
    if not low < level < high:
        where = "outside of it everywhere" if low >= level else "inside of it everywhere"
        raise FieldError(f"the field has no surface at {level:g}: its distances are {low:.3g} to {high:.3g}, {where}")
    vertices, faces, normals, _ = marching_cubes(sdf, level, gradient_direction="descent", allow_degenerate=False)
    return (vertices * (2 / (np.array(sdf.shape) - 1)) - 1).astype(np.float32), faces, -normals


def coloured(mesh: trimesh.Trimesh, colours: Tensor) -> trimesh.Trimesh:
    """The mesh with these colours (N, 3) in [0, 1] at its vertices."""
    rgb = (colours.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()
    alpha = np.full((len(rgb), 1), 255, np.uint8)
    mesh.visual = ColorVisuals(mesh, vertex_colors=np.concatenate([rgb, alpha], 1))
    return mesh


def components(mesh: trimesh.Trimesh) -> np.ndarray:
    """(faces,) the number of each face's connected component; faces with a common vertex are connected."""
    return trimesh.graph.connected_component_labels(mesh.edges, node_count=len(mesh.vertices))[mesh.faces[:, 0]]


def largest(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The connected component with the most faces."""
    label = components(mesh)
    counts = np.bincount(label)
    if len(counts) == 1:
        return mesh
    return mesh.submesh([np.flatnonzero(label == counts.argmax())], append=True, repair=False)  # pyright: ignore


def without_crumbs(mesh: trimesh.Trimesh, share: float = 0.01) -> trimesh.Trimesh:
    """Without connected components of less than this share of the faces."""
    label = components(mesh)
    counts = np.bincount(label)
    if len(counts) == 1:
        return mesh
    keep = np.flatnonzero((counts >= share * len(mesh.faces))[label])
    return mesh.submesh([keep], append=True, repair=False)  # pyright: ignore


def decimated(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """At most about this many faces, by quadric error; colours are those of the nearest old vertices.

    A thin part may collapse into faces back to back, which are taken out, or into an edge of four faces: where that opens a closed mesh, edges are
    collapsed less eagerly, which may leave more faces than asked for.

    Raises:
        FieldError: fewer than 4 faces.
    """
    if faces < 4:
        raise FieldError(f"a closed mesh has at least 4 faces, not {faces}")
    if len(mesh.faces) <= faces:
        return mesh
    for aggression in (7, 5, 4, 3):  # 7 is the default of fast-simplification
        out = _without_flaps(mesh.simplify_quadric_decimation(face_count=faces, aggression=aggression))
        if out.is_watertight or not mesh.is_watertight:
            break
    if isinstance(mesh.visual, ColorVisuals) and mesh.visual.kind == "vertex":
        near = KDTree(mesh.vertices).query(out.vertices)[1]
        out.visual = ColorVisuals(out, vertex_colors=mesh.visual.vertex_colors[near])
    return out


def _without_flaps(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Without pairs of faces on the same three vertices."""
    mesh = trimesh.Trimesh(mesh.vertices, mesh.faces, process=True)
    _, which, count = np.unique(np.sort(mesh.faces, 1), axis=0, return_inverse=True, return_counts=True)
    return trimesh.Trimesh(mesh.vertices, mesh.faces[count[which.ravel()] == 1], process=True)


def attached(vertices: Tensor, field: Callable[[Tensor], Tensor]) -> Tensor:
    """Vertices (N, 3) whose gradient is that of the level set they lie on, to first order.

        v - sg(n / |grad f|) (f(v) - sg(f(v))),   n = grad f / |grad f|

    field: points (N, 3) -> sdf (N,), differentiable in its parameters; the values of the vertices do not change.
    """
    with torch.enable_grad():
        at = vertices.detach().requires_grad_()
        (slope,) = torch.autograd.grad(field(at).sum(), at)
    value = field(vertices.detach())
    step = slope / slope.square().sum(-1, keepdim=True).clamp_min(1e-12)
    return vertices.detach() - step.detach() * (value - value.detach())[:, None]
