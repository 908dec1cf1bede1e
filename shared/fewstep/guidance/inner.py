"""Inner products per sample, which the rules that are not linear in the branches need; real also for complex states."""

from torch import Tensor

from fewstep.paths import expand

# Dimensions summed over; None: all but the batch.
Dims = tuple[int, ...] | None


def dot(a: Tensor, b: Tensor, dims: Dims = None) -> Tensor:
    """<a, b> of a, b: (B, ...), kept broadcastable: (B, 1, ..., 1), or 1 in `dims` alone."""
    product = (a * b.conj()).real if a.is_complex() else a * b
    return product.sum(tuple(range(1, a.ndim)) if dims is None else dims, keepdim=True)


def along(a: Tensor, b: Tensor, least: float = 0.0, dims: Dims = None) -> Tensor:
    """<a, b> / max(<b, b>, least): the coefficient of a's projection on b, 0 where b = 0."""
    length = dot(b, b, dims).clamp(min=least)
    return dot(a, b, dims) / length.masked_fill(length == 0, 1.0)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """cos(a, b) per sample, (B,); 1 for equal tensors, NaN where one is zero."""
    return (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).flatten()


def per_sample(w: float | Tensor, x: Tensor) -> float | Tensor:
    """A number as it is, (B,) as (B, 1, ..., 1) beside x: (B, ...)."""
    return expand(w, x) if isinstance(w, Tensor) else w
