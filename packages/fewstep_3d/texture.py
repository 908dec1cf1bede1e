"""Bake a field's colours into a texture: xatlas unwraps, triangles are filled in texture space, colours are asked for where texels lie."""

from collections.abc import Callable

import numpy as np
import trimesh
import xatlas
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

# Points (N, 3) on the surface, the faces they lie on and their barycentric weights (N, 3) -> colours (N, 3) in [0, 1].
Colours = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def textured(mesh: trimesh.Trimesh, colours: Colours, side: int = 512, border: int = 4) -> trimesh.Trimesh:
    """The mesh with a base-colour texture of side x side pixels. Vertices on seams are doubled.

    Args:
        colours: of points of the surface of `mesh`.
        border: how far colours go on beyond the islands, so that filtering does not mix in the empty.
    """
    origin, faces, uv = xatlas.parametrize(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    face, weights, where = texels(uv[faces] * side, side)
    points = (mesh.triangles[face] * weights[..., None]).sum(1)
    image = np.zeros((side, side, 3), np.float32)
    filled = np.zeros((side, side), bool)
    image[where[:, 1], where[:, 0]] = colours(points, face, weights)
    filled[where[:, 1], where[:, 0]] = True
    image = dilated(image, filled, border)
    picture = Image.fromarray((image[::-1].clip(0, 1) * 255).round().astype(np.uint8))  # v goes up
    material = PBRMaterial(baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0)
    visual = TextureVisuals(uv=uv, material=material)
    return trimesh.Trimesh(mesh.vertices[origin], faces, visual=visual, process=False)


def texels(triangles: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texels whose centres lie in triangles (M, 3, 2) given in pixels -> (face (N,), barycentric weights (N, 3), (column, row) (N, 2)).

    Each triangle is asked about the box around it; triangles are taken together where their boxes have the same size class.
    """
    low = np.floor(triangles.min(1) - 0.5).astype(int).clip(0, side - 1)
    high = np.ceil(triangles.max(1) - 0.5).astype(int).clip(0, side - 1)
    extent = (high - low + 1).max(1)
    found = []
    size = 1
    while size < 2 * extent.max():
        own = np.flatnonzero((extent <= size) & (extent > size // 2))
        offset = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
        for part in np.array_split(own, max(1, len(own) * size * size // 2**21)):
            found.append(_inside(triangles, part, low[part][:, None] + offset, side))
        size *= 2
    face, weights, where = (np.concatenate(x) for x in zip(*found, strict=True))
    return face, weights, where


def _inside(
    triangles: np.ndarray, index: np.ndarray, at: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b, c = triangles[index].transpose(1, 0, 2)[:, :, None]
    p = at + 0.5
    cross = lambda u, v: u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
    area = cross(b - a, c - a)
    area = np.where(np.abs(area) < 1e-12, np.nan, area)
    w = np.stack([cross(c - b, p - b), cross(a - c, p - c), cross(b - a, p - a)], -1) / area[..., None]
    inside = (w >= -1e-6).all(-1) & (at < side).all(-1)
    row, _ = np.nonzero(inside)
    return index[row], w[inside], at[inside]


def dilated(image: np.ndarray, filled: np.ndarray, steps: int) -> np.ndarray:
    """Empty texels (H, W, 3) take the mean of their filled neighbours, `steps` times."""
    for _ in range(steps):
        total, count = np.zeros_like(image), np.zeros(filled.shape, np.float32)
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            near = np.roll(filled, step, axis)
            total += np.roll(image, step, axis) * near[..., None]
            count += near
        grow = ~filled & (count > 0)
        image = np.where(grow[..., None], total / np.maximum(count, 1)[..., None], image)
        filled = filled | grow
    return image
