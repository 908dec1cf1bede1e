"""Frechet distance between two Gaussians fitted to features (Dowson & Landau 1982; FID of arXiv:1706.08500).

    d^2 = |mu1 - mu2|^2 + tr(C1) + tr(C2) - 2 tr((C1^1/2 C2 C1^1/2)^1/2)

shapes: features (N, D), mu (D,), cov (D, D);  result () in float64, >= 0, and not rooted, as FID is
"""

import torch
from torch import Tensor


def frechet_distance(features_x: Tensor, features_y: Tensor) -> Tensor:
    """d^2 of the Gaussians fitted to (N, D) and (M, D), shape (); covariances divide by N - 1.

    Biased upwards at finite N (by about D^2 / 2N for white features, N = M): compare values at equal N only.
    """
    if features_x.ndim != 2 or features_y.ndim != 2 or features_x.shape[1] != features_y.shape[1]:
        shapes = f"{tuple(features_x.shape)} and {tuple(features_y.shape)}"
        raise ValueError(f"features have shapes {shapes}; allowed: (N, D) and (M, D) with one D")
    if min(len(features_x), len(features_y)) < 2:
        raise ValueError(f"{len(features_x)} and {len(features_y)} samples given; allowed: at least 2 of each")
    return frechet_from_moments(*_moments(features_x), *_moments(features_y))


def frechet_from_moments(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> Tensor:
    """d^2 of N(mu1, cov1) and N(mu2, cov2), shape ().

    tr (C1 C2)^1/2 is taken from the symmetric matrix S C2 S, S = C1^1/2, which has the same eigenvalues: all real
    and >= 0, so singular covariances need no added epsilon, unlike the general matrix root of the official FID.
    """
    dim = mu1.numel()
    shapes = [tuple(v.shape) for v in (mu1, cov1, mu2, cov2)]
    if shapes != [(dim,), (dim, dim)] * 2:
        raise ValueError(f"moments have shapes {shapes}; allowed: (D,), (D, D), (D,), (D, D)")
    mu1, cov1, mu2, cov2 = (v.double() for v in (mu1, cov1, mu2, cov2))
    if not all(bool(v.isfinite().all()) for v in (mu1, cov1, mu2, cov2)):
        raise ValueError("the moments hold nan or inf; allowed: finite features only")
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    squared = (mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return squared.clamp(min=0)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    mu = features.mean(0)
    centred = features - mu
    return mu, centred.T @ centred / (len(features) - 1)
