"""One path per band of coordinates: x_k = a_k(t) x0_k + s_k(t) eps_k, e.g. per frequency of an image.

States are kept in the coordinates where the bands are; for frequencies that is z = F x with the orthonormal FFT:

    path = SpectralShortestPath((32, 32))                          Denoiser(FrequencyNet(net, 2), path, Eps())
    z = sample(Banding(denoiser), frequencies(noise, 2), path, Banded(DPMpp2M()), grid);    x = pixels(z, 2)

`solvers.banded.Banded` gives every band its own weights; times, and so evaluations, are shared.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fewstep.estimate import Estimate
from fewstep.paths.base import Coeffs, Path, Triple
from fewstep.paths.shaped import radius
from fewstep.paths.shortest_path import ShortestPath, shortest

if TYPE_CHECKING:  # denoisers import paths
    from fewstep.denoiser import Cond, Denoiser


class BandedPath(Path):
    """A path per coordinate, without anchor. All bands share their time range.

    `schedule` and `log_snr` are those of the first band, for grids; states go by `coeffs`, (B, ...) in the coordinates.
    """

    @property
    @abstractmethod
    def bands(self) -> tuple[Path, ...]:
        """The different paths."""

    @property
    @abstractmethod
    def index(self) -> Tensor:
        """Which band each coordinate is in: (...), the trailing dimensions of the state."""

    @property
    def t_min(self) -> float:
        return self.bands[0].t_min

    @property
    def t_max(self) -> float:
        return self.bands[0].t_max

    def schedule(self, t: Tensor) -> Triple:
        return self.bands[0].schedule(t)

    def rates(self, t: Tensor) -> Triple:
        return self.bands[0].rates(t)

    def of_bands(self, t: Tensor) -> Coeffs:
        """Coefficients at t: (B,), (B, bands)."""
        rows = [(*band.schedule(t), *band.rates(t)) for band in self.bands]
        return Coeffs(*(torch.stack(column, 1) for column in zip(*rows, strict=True)))

    def coeffs(self, t: Tensor, x: Tensor) -> Coeffs:
        """Coefficients at t: (B,), as (B, 1, ..., *index.shape) beside x: (B, ...)."""
        index = self.index.to(x.device)
        shape = (len(t), *[1] * (x.ndim - 1 - index.ndim), *index.shape)
        t = t.double() if t.device.type != "mps" else t
        return Coeffs(*(v[:, index].to(x.dtype).reshape(shape) for v in self.of_bands(t)))

    def sample(self, x0: Tensor, eps: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        c = self.coeffs(t, x0)
        return c.a * x0 + c.s * eps

    def velocity(self, x0: Tensor, eps: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        c = self.coeffs(t, x0)
        return c.da * x0 + c.ds * eps

    def start(self, noise: Tensor, y: Tensor | None = None, t: float | None = None) -> Tensor:
        at = torch.full((len(noise),), self.t_max if t is None else t, dtype=torch.float64, device=noise.device)
        return self.coeffs(at, noise).s * noise


@dataclass(frozen=True)
class SpectralShortestPath(BandedPath):
    """Shortest Path Diffusion (arXiv:2306.00501): variance c1/(c2 + |f|)^m of the data at frequency f (orthonormal FFT,
    data in [-1, 1]).

    sizes: of the trailing dimensions, e.g. (H, W). The defaults are the paper's fit to CIFAR-10.
    """

    sizes: tuple[int, ...] = (32, 32)
    c1: float = 1.59
    c2: float = 0.0086
    m: float = 2.0

    @cached_property
    def _radii(self) -> tuple[Tensor, Tensor]:
        """(different |f|, which one each frequency has)."""
        squares, index = (
            radius(*self.sizes).square().round().unique(return_inverse=True)
        )  # whole numbers: equal ones meet
        return squares.sqrt(), index

    @property
    def variances(self) -> Tensor:
        """D of each band, (bands,)."""
        return self.c1 / (self.c2 + self._radii[0]) ** self.m

    @cached_property
    def bands(self) -> tuple[Path, ...]:
        return tuple(ShortestPath(v) for v in self.variances.tolist())

    def of_bands(self, t: Tensor) -> Coeffs:
        """All bands at once."""
        a, s, da, ds = shortest(t[:, None], self.variances.to(t).log())
        zero = torch.zeros_like(a)
        return Coeffs(a, zero, s, da, zero, ds)

    @property
    def index(self) -> Tensor:
        return self._radii[1]


def frequencies(x: Tensor, dims: int) -> Tensor:
    """Orthonormal FFT over the last `dims` dimensions: real (B, ...) -> complex (B, ...). White noise stays white."""
    return torch.fft.fftn(x, dim=tuple(range(-dims, 0)), norm="ortho")


def pixels(z: Tensor, dims: int) -> Tensor:
    """The inverse of `frequencies` on the spectra of real x."""
    return torch.fft.ifftn(z, dim=tuple(range(-dims, 0)), norm="ortho").real


class FrequencyNet(nn.Module):
    """A network on x as one on z = F x: F net(F^-1 z)."""

    def __init__(self, net: nn.Module, dims: int = 2) -> None:
        super().__init__()
        self.net, self.dims = net, dims

    def forward(self, z: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return frequencies(self.net(pixels(z, self.dims), t, **cond), self.dims)


class Banding:
    """A denoiser on a banded path with its conditions fixed: (z, t) -> Estimate, t a float or (B,).

    `Denoiser.bind` tabulates scalars per time, which bands do not have.
    """

    def __init__(self, denoiser: "Denoiser", cond: "Cond | None" = None) -> None:
        self.denoiser, self.cond = denoiser, cond

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        times = torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x))
        return self.denoiser(x, times, self.cond)
