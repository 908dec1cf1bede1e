"""What a model's score says about itself and about the data: is it a gradient, and how many dimensions has the data?

The Jacobian of a true score is symmetric; guidance rules other than fixed linear mixtures, and networks, break that.
Near a data manifold of dimension d the score at low noise points along its D - d normals.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.likelihood import ExactTrace, Trace, pulled, value_and_trace
from fewstep.paths import Path


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(B, D, D) of f: (B, ...) -> (B, ...) that treats samples independently; D products."""
    v, _ = ExactTrace().directions(x)
    return pulled(f, x, v)[1].flatten(2).transpose(0, 1)


def asymmetry(denoise: Denoise, x: Tensor, t: float | Tensor, trace: Trace | None = None) -> Tensor:
    """|J - J^T|_F/|J|_F of the Jacobian J of eps, and so of the score; (B,), 0 for a gradient field, at most 2.

    trace: exact where not given (D products); with `Hutchinson` probes v the norms are estimated as root mean squares
    of |J v - J^T v| and |J v|, by products with J and J^T alone.
    """

    def eps(x: Tensor) -> Tensor:
        return denoise(x, t).eps

    if trace is None:
        j = jacobian(eps, x)
        return (j - j.mT).norm(dim=(1, 2)) / j.norm(dim=(1, 2))
    v, _ = trace.directions(x)
    back = pulled(eps, x, v)[1]
    ahead = torch.stack([torch.func.jvp(eps, (x,), (p,))[1] for p in v])
    squares = ((ahead - back).square().flatten(2).sum((0, 2)), ahead.square().flatten(2).sum((0, 2)))
    return (squares[0] / squares[1]).sqrt()


class Dimension(NamedTuple):
    """d: (B,) estimated dimensions; spectrum: (B, D) singular values of the scores, falling."""

    d: Tensor
    spectrum: Tensor


def intrinsic_dimension(
    denoise: Denoise,
    x0: Tensor,
    path: Path,
    t: float,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Dimension:
    """Dimension of the data around x0 by the rank of the scores of noisy copies (arXiv:2212.12611).

    The scores at a x0 + s n span the normals, D - d of them; d = D - (place of the largest gap in the spectrum of their
    matrix). Between 1 and D - 1, as there is always a largest gap: look at the spectrum.

    Args:
        x0: (B, ...) clean points on an unanchored path.
        t: a small time: s below the scale on which the manifold bends, well above the model's error.
        samples: noisy copies of each point, 4 D where not given; one batched evaluation per point.
    """
    d = x0[0].numel()
    n = 4 * d if samples is None else samples
    a, _, s = path.levels(t)
    spectra = []
    for point in x0:
        device = x0.device if generator is None else generator.device
        noise = torch.randn((n, *point.shape), dtype=x0.dtype, generator=generator, device=device).to(x0.device)
        scores = denoise(a * point + s * noise, t).eps / -s
        spectra.append(torch.linalg.svdvals(scores.flatten(1)))
    spectrum = torch.stack(spectra)
    return Dimension(d - 1 - (spectrum[:, :-1] - spectrum[:, 1:]).argmax(1), spectrum)


def flipd(denoise: Denoise, x0: Tensor, path: Path, t: float, trace: Trace | None = None) -> Tensor:
    """FLIPD (arXiv:2406.03537): local intrinsic dimension from the Fokker-Planck equation, (B,). 1 NFE with products.

        d = D + s^2 (tr dS/dx + |S|^2) = D - s tr(d eps/dx) + |eps|^2      at x = a x0, for t -> 0

    It is d log p(x0 convolved with noise of level rho)/d log rho + D. trace: exact where not given.
    """
    a, _, s = path.levels(t)
    x = a * x0
    v, scale = (trace or ExactTrace()).directions(x)
    eps, tr = value_and_trace(lambda x: denoise(x, t).eps, x, v, scale)
    return x0[0].numel() - s * tr + eps.square().flatten(1).sum(1)
