"""Figures of shapes against shapes.

    IoU          of the insides on a grid of corners
    Chamfer-L1   mean of the two directional mean distances between surface samples; L2 the same of squared distances
    F(d)         harmonic mean of the shares of samples of either surface within d of the other
    diversity    mean of 1 - IoU over all pairs
    PSNR         -10 log10 of the mean square, of images in [0, 1]

Samples of a surface against other samples of the same one are some distance apart: `floor` tells it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import trimesh
from scipy.spatial import KDTree
from torch import Tensor

from fewstep_3d.mesh_files import MeshError


class Distances(NamedTuple):
    """Between two sets of points, in their units."""

    chamfer_l1: float
    chamfer_l2: float
    f_score: dict[float, float]


def distances(a: np.ndarray, b: np.ndarray, thresholds: Sequence[float] = (0.01, 0.02, 0.05)) -> Distances:
    """Of points (N, 3) and (M, 3)."""
    ab, ba = KDTree(b).query(a)[0], KDTree(a).query(b)[0]
    scores = {}
    for d in thresholds:
        precision, recall = float((ab <= d).mean()), float((ba <= d).mean())
        scores[d] = 2 * precision * recall / max(precision + recall, 1e-12)
    squared = 0.5 * float((ab**2).mean() + (ba**2).mean())
    return Distances(0.5 * float(ab.mean() + ba.mean()), squared, scores)


def surface_samples(mesh: trimesh.Trimesh, count: int = 20_000, seed: int = 0) -> np.ndarray:
    """Points (count, 3) uniform on the surface."""
    return np.asarray(trimesh.sample.sample_surface(mesh, count, seed=seed)[0])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Of insides (..., G, G, G), boolean -> (...); 1 where both are empty."""
    both, either = (a & b).flatten(-3).sum(-1), (a | b).flatten(-3).sum(-1)
    return torch.where(either > 0, both.double() / either.clamp_min(1), torch.ones_like(both, dtype=torch.float64))


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Of insides (N, G, G, G) and (M, G, G, G) -> (N, M)."""
    x, y = a.flatten(1).double(), b.flatten(1).double()
    both = x @ y.T
    either = x.sum(1)[:, None] + y.sum(1) - both
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))


def diversity(inside: Tensor) -> float:
    """Mean of 1 - IoU over the pairs of (N, G, G, G); 0 for a single one."""
    n = len(inside)
    if n < 2:
        return 0.0
    return float((1 - pairwise_iou(inside, inside)).sum() / (n * (n - 1)))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Of images (B, ...) in [0, 1] -> (B,) dB, inf for equal ones."""
    return -10 * torch.log10((a - b).double().square().flatten(1).mean(1))


def signed_distance(mesh: trimesh.Trimesh, points: np.ndarray, samples: int = 200_000) -> np.ndarray:
    """(N,) negative inside: distances to samples of the surface, signs by the parity of ray hits. Good to about sqrt(area/samples).

    Raises:
        MeshError: an open mesh, which has no inside.
    """
    require_closed(mesh)
    distance = KDTree(surface_samples(mesh, samples)).query(points)[0]
    return np.where(mesh.contains(points), -distance, distance)


def occupied(mesh: trimesh.Trimesh, side: int = 64) -> Tensor:
    """The inside at the corners of a grid over [-1, 1]^3, (side, side, side) boolean.

    Raises:
        MeshError: an open mesh.
    """
    require_closed(mesh)
    line = np.linspace(-1, 1, side)
    points = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    return torch.from_numpy(mesh.contains(points)).view(side, side, side)


def require_closed(mesh: trimesh.Trimesh) -> None:
    """Raises MeshError for a mesh with open edges: it has no inside, and so no IoU and no signed distance."""
    if not mesh.is_watertight:
        edges = mesh.edges_sorted[trimesh.grouping.group_rows(mesh.edges_sorted, require_count=1)]
        raise MeshError(f"the mesh is open ({len(edges)} boundary edges): it has no inside; a watertight one is needed")
