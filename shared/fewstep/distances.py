"""Distances of a sample to its target: distance(a, b) -> (B,).

Papers differ in where the square root of a pseudo-Huber distance is taken and in what is divided by the dimension:

    PseudoHuber         sqrt(|d|^2 + c^2) - c, |d| over the whole sample     (iCT, arXiv:2310.14189, with c = 0.00054 sqrt(D))
    ElementwiseHuber    mean of sqrt(d^2 + c^2) - c over the elements        (LCM, arXiv:2310.04378, c = 0.001)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distance(ABC):
    """(a, b), both (B, ...) and real -> (B,); 0 where they are equal, differentiable in a."""

    @abstractmethod
    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SquaredL2(Distance):
    """mean d^2."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().flatten(1).mean(1)


@dataclass(frozen=True)
class L1(Distance):
    """mean |d|."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class PseudoHuber(Distance):
    """sqrt(|d|^2 + c^2) - c with |d|^2 = sum d^2 over the sample and c = `scale` sqrt(D)."""

    scale: float = 0.00054

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        d = (a - b).flatten(1)
        return pseudo_huber(d.square().sum(1), self.scale * d.shape[1] ** 0.5)


@dataclass(frozen=True)
class ElementwiseHuber(Distance):
    """mean over elements of sqrt(d^2 + c^2) - c."""

    c: float = 1e-3

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return pseudo_huber((a - b).square(), self.c).flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class Within(Distance):
    """Another distance over the elements whose mask is not 0, sample by sample: a mean is over as many as there are.

    mask: broadcast against (B, ...).
    """

    distance: Distance
    mask: Tensor

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        inside = self.mask.bool().expand_as(a)
        return torch.cat([self.distance(u[m][None], v[m][None]) for u, v, m in zip(a, b, inside, strict=True)])


def within(distance: Distance, mask: Tensor | None) -> Distance:
    """The distance itself without a mask."""
    return distance if mask is None else Within(distance, mask)


def pseudo_huber(square: Tensor, c: float) -> Tensor:
    """sqrt(square + c^2) - c, without cancellation for small squares."""
    return square / (torch.sqrt(square + c * c) + c)
