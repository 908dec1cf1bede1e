"""Shaped noise: x_t = a x0 + b y + s L xi with white xi and an invertible linear L.

In the coordinates x' = L^-1 x the noise is white and the path is the plain one, so nothing else changes: with n = L xi
in the place of eps, the state is a x0 + b y + s n, conversions and solver weights are those of the path, and only what
draws noise has to know L:

    training             path.sample(x0, shaper.noise(x0), t, y)
    start                path.start(shaper.noise(x0), y)
    stochastic solvers   sample(..., generator=lambda row: shaper.noise(x, generator))

`Whitened` is the other way round: a denoiser in the white coordinates, for whatever assumes isotropic noise.

    Diagonal   L = diag(std): noise per coordinate (PriorGrad, arXiv:2106.06406; PeriodWave, arXiv:2408.07547)
    Spectral   L = F^-1 diag(amplitude) F: coloured noise
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.estimate import Estimate

if TYPE_CHECKING:  # denoisers import paths
    from fewstep.denoiser import Denoise


class Shaper(ABC):
    """An invertible linear map on states x: (B, ...)."""

    @abstractmethod
    def shape(self, x: Tensor) -> Tensor:
        """L x."""

    @abstractmethod
    def white(self, x: Tensor) -> Tensor:
        """L^-1 x."""

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Fresh L xi, shape, dtype and device of `like`; drawn where the generator lives."""
        device = like.device if generator is None else generator.device
        return self.shape(torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device))


class Diagonal(Shaper):
    """Standard deviation per coordinate, broadcast against (B, ...); positive."""

    def __init__(self, std: Tensor) -> None:
        if not (std > 0).all():
            raise ValueError(f"standard deviations are positive, the smallest given is {std.min().item():g}")
        self.std = std

    def shape(self, x: Tensor) -> Tensor:
        return x * self.std.to(x)

    def white(self, x: Tensor) -> Tensor:
        return x / self.std.to(x)


class Spectral(Shaper):
    """Amplitude per frequency of the trailing dimensions, laid out as by `torch.fft.fftn`: (N,), (H, W), ...; positive.

    Real states need amplitude(-f) = amplitude(f), as functions of `radius` are.
    """

    def __init__(self, amplitude: Tensor) -> None:
        if not (amplitude > 0).all():
            raise ValueError(f"amplitudes are positive, the smallest given is {amplitude.min().item():g}")
        self.amplitude, self._dims = amplitude, tuple(range(-amplitude.ndim, 0))
        self._even = torch.allclose(amplitude, amplitude.flip(self._dims).roll([1] * amplitude.ndim, self._dims))

    def shape(self, x: Tensor) -> Tensor:
        return self._filter(x, self.amplitude)

    def white(self, x: Tensor) -> Tensor:
        return self._filter(x, 1 / self.amplitude)

    def _filter(self, x: Tensor, gain: Tensor) -> Tensor:
        if not (x.is_complex() or self._even):
            raise ValueError("real states need amplitudes with amplitude(-f) = amplitude(f)")
        spectrum = torch.fft.fftn(x, dim=self._dims)
        out = torch.fft.ifftn(spectrum * gain.to(spectrum), dim=self._dims)
        return out if x.is_complex() else out.real


def radius(*sizes: int) -> Tensor:
    """|f| in cycles over the whole extent, laid out as by `torch.fft.fftn`, float64: (*sizes)."""
    axes = [torch.fft.fftfreq(n, d=1 / n, dtype=torch.float64) for n in sizes]
    return torch.stack([f**2 for f in torch.meshgrid(*axes, indexing="ij")]).sum(0).sqrt()


class Whitened:
    """A denoiser of white coordinates x' = L^-1 x, made of one of shaped states. Wrapper: denoiser in, denoiser out."""

    def __init__(self, denoise: "Denoise", shaper: Shaper) -> None:
        self.denoise, self.shaper = denoise, shaper

    def prepare(self, times: tuple[float, ...], x: Tensor) -> None:
        """Passed on."""
        if hasattr(self.denoise, "prepare"):
            self.denoise.prepare(times, x)  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        at = self.denoise(self.shaper.shape(x), t)
        return Estimate(lambda: self.shaper.white(at.x0), lambda: self.shaper.white(at.eps))
