"""Pictures of meshes by ray casting (Embree): colours, world normals, masks, with several rays per pixel.

Targets of fits, and what learnt shapes are compared with. Not differentiable.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import trimesh
from torch import Tensor
from trimesh.visual import ColorVisuals, TextureVisuals

from fewstep_3d.cameras import Cameras

GREY = 0.7


class Views(NamedTuple):
    """cameras, and what they see before `background`: colours (V, H, W, 3); mask (V, H, W) and normals (V, H, W, 3) times mask,
    None where they are not known."""

    cameras: Cameras
    colours: Tensor
    mask: Tensor | None
    normals: Tensor | None
    background: float = 0.0

    def some(self, index: Sequence[int] | Tensor) -> "Views":
        """Those of these cameras."""
        mask = None if self.mask is None else self.mask[index]
        normals = None if self.normals is None else self.normals[index]
        return Views(self.cameras[index], self.colours[index], mask, normals, self.background)


def held_out(count: int, keep: int) -> Tensor:
    """Which of `count` views are kept for judging: `keep` evenly among the others, none where fewer than half would be left."""
    if keep == 0 or count < 2 * keep:
        return torch.zeros(0, dtype=torch.long)
    return torch.linspace(0, count - 1, keep + 2)[1:-1].round().long().unique()


def mesh_views(mesh: trimesh.Trimesh, cameras: Cameras, rays: int = 2) -> Views:
    """What cameras see of a mesh, averaged over rays^2 rays per pixel. Colours are unlit; grey .7 where the mesh has none."""
    height, width = cameras.size
    fine = cameras.resized(height * rays, width * rays)
    ray = fine.rays()
    origins, directions = (x.reshape(-1, 3).double().numpy() for x in ray)
    triangle = _first_hits(mesh, origins, directions)
    hit = triangle >= 0
    faces = mesh.faces[triangle[hit]]
    weights = _barycentric(mesh.triangles[triangle[hit]], origins[hit], directions[hit])
    normals, colours = np.zeros((2, len(hit), 3), np.float32)
    smooth = (mesh.vertex_normals[faces] * weights[..., None]).sum(1)
    smooth /= np.maximum(np.linalg.norm(smooth, axis=-1, keepdims=True), 1e-9)
    # Seen from behind (open meshes): the side that is turned to the camera.
    facing = np.where((smooth * directions[hit]).sum(-1, keepdims=True) > 0, -1.0, 1.0)
    flat = mesh.face_normals[triangle[hit]]
    behind = (flat * directions[hit]).sum(-1, keepdims=True) > 0
    normals[hit] = np.where(behind, facing * smooth, smooth)
    colours[hit] = surface_colours(mesh, triangle[hit], weights)
    shape = (len(cameras), height, rays, width, rays)
    mask = torch.from_numpy(hit.astype(np.float32)).view(shape).mean((2, 4))
    mean = lambda x: torch.from_numpy(x).view(*shape, 3).mean((2, 4))
    return Views(cameras, mean(colours), mask, mean(normals))


def _first_hits(mesh: trimesh.Trimesh, origins: np.ndarray, directions: np.ndarray, chunk: int = 2**17) -> np.ndarray:
    """(N,) faces, -1 where nothing is hit."""
    parts = range(0, len(origins), chunk)
    return np.concatenate([mesh.ray.intersects_first(origins[i : i + chunk], directions[i : i + chunk]) for i in parts])


def _barycentric(triangles: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(N, 3) weights of the corners where rays meet the planes of their triangles (N, 3, 3)."""
    a, b, c = triangles.transpose(1, 0, 2)
    n = np.cross(b - a, c - a)
    along = (directions * n).sum(-1)
    t = ((a - origins) * n).sum(-1) / np.where(np.abs(along) < 1e-12, 1e-12, along)
    weights = trimesh.triangles.points_to_barycentric(triangles, origins + t[:, None] * directions)
    weights = np.clip(np.nan_to_num(weights, nan=1 / 3), 0, 1)
    return weights / weights.sum(-1, keepdims=True)


def surface_colours(mesh: trimesh.Trimesh, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Colours (N, 3) in [0, 1] at places of faces (N,) given by barycentric weights (N, 3): texture, vertex or face colours."""
    visual, corners = mesh.visual, mesh.faces[face]
    if isinstance(visual, TextureVisuals):
        image = getattr(visual.material, "image", None) or getattr(visual.material, "baseColorTexture", None)
        if visual.uv is not None and image is not None:
            uv = (visual.uv[corners] * weights[..., None]).sum(1)
            return _looked_up(np.asarray(image.convert("RGB"), np.float32) / 255, uv)
        main = np.asarray(visual.material.main_color, np.float32)[:3] / 255
        return np.broadcast_to(main, (len(face), 3))
    if isinstance(visual, ColorVisuals) and visual.kind == "vertex":
        rgb = visual.vertex_colors[:, :3].astype(np.float32) / 255
        return (rgb[corners] * weights[..., None]).sum(1)
    if isinstance(visual, ColorVisuals) and visual.kind == "face":
        return visual.face_colors[face, :3].astype(np.float32) / 255
    return np.full((len(face), 3), GREY, np.float32)


def _looked_up(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear, repeating, v upwards: image (H, W, 3), uv (N, 2)."""
    height, width = image.shape[:2]
    x, y = uv[:, 0] % 1 * width - 0.5, (1 - uv[:, 1] % 1) * height - 0.5
    i, j = np.floor(y).astype(int), np.floor(x).astype(int)
    fy, fx = (y - i)[:, None], (x - j)[:, None]
    at = lambda di, dj: image[(i + di) % height, (j + dj) % width]
    top, bottom = at(0, 0) * (1 - fx) + at(0, 1) * fx, at(1, 0) * (1 - fx) + at(1, 1) * fx
    return top * (1 - fy) + bottom * fy
