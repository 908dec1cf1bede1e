"""Exact worlds: Gaussian mixtures, where denoiser, score, density and (for one component) the flow map are known.

p(x0) = sum_k w_k N(mu_k, C_k),  C_k = Q_k diag(ev_k) Q_k^T      x_t | k ~ N(a mu_k + b y, a^2 C_k + s^2 I)
r_k = softmax_k log(w_k N(x_t; ...)),   z_k = Q_k^T (x_t - b y - a mu_k)
E[x0 | x_t] = sum_k r_k (mu_k + Q_k (a ev_k / (a^2 ev_k + s^2)) z_k)
"""

import math

import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.paths import Path, expand


class Mixture:
    """Gaussian mixture in D dimensions on a path; states are (B, D).

    Args:
        path: the path the data is diffused on.
        means: (K, D).  weights: (K,), uniform where not given.
        covs: (K, D, D), positive semi-definite, or (K, D), the variances of independent coordinates (for large D).
        y: (B, D) or (D,) anchor on anchored paths.
    """

    def __init__(
        self, path: Path, means: Tensor, covs: Tensor, weights: Tensor | None = None, y: Tensor | None = None
    ) -> None:
        self.path, self.means, self.y = path, means, y
        self.q: Tensor | None = None  # (K, D, D); None where the coordinates are independent
        if covs.ndim == 2:
            self.ev = covs
        else:
            self.ev, self.q = torch.linalg.eigh(covs)  # ev: (K, D)
            self.ev = self.ev.clamp(min=0)
        self.weights = torch.full((len(means),), 1 / len(means), dtype=means.dtype) if weights is None else weights

    def _parts(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(a, s) as (B, 1), centred state (B, D), rotated residuals z and variances v (B, K, D), log responsibilities (B, K) + log p."""
        t = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        a, b, s = (expand(v, x) for v in self.path.schedule(t))
        xc = x if self.y is None else x - b * self.y
        z = self._to_axes(xc[:, None] - a[..., None] * self.means)
        v = a[..., None] ** 2 * self.ev + s[..., None] ** 2
        certain = v == 0  # at the start of a bridge, a = s = 0, the state says nothing about x0
        square = torch.where(certain, 0.0, z**2 / v + v.log() + math.log(2 * math.pi))
        log_joint = self.weights.log() - 0.5 * square.sum(-1)
        return a, s, xc, z, v, log_joint

    def _to_axes(self, v: Tensor) -> Tensor:
        """Q_k^T v_k, (B, K, D)."""
        return v if self.q is None else torch.einsum("kde,bkd->bke", self.q, v)

    def _from_axes(self, v: Tensor) -> Tensor:
        """Q_k v_k, (B, K, D)."""
        return v if self.q is None else torch.einsum("kde,bke->bkd", self.q, v)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        """The exact (E[x0|x_t], E[eps|x_t]) at times t, a float or (B,)."""
        a, s, _, z, v, log_joint = self._parts(x, t)
        r = log_joint.softmax(1)[..., None]
        x0 = (r * (self.means + self._from_axes(_divided(a[..., None] * self.ev, v) * z))).sum(1)
        eps = (r * self._from_axes(_divided(s[..., None], v) * z)).sum(1)
        return Estimate(x0, eps)

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """grad log p_t(x), (B, D)."""
        _, _, _, z, v, log_joint = self._parts(x, t)
        r = log_joint.softmax(1)[..., None]
        return -(r * self._from_axes(z / v)).sum(1)

    def log_density(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x), (B,)."""
        return self._parts(x, t)[-1].logsumexp(1)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n samples of x0, (n, D)."""
        return self.draw_labelled(n, generator)[0]

    def draw_labelled(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n samples of x0, (n, D), and the components they come from, (n,)."""
        k = torch.multinomial(self.weights.double(), n, replacement=True, generator=generator)
        xi = torch.randn(n, self.means.shape[1], dtype=self.means.dtype, generator=generator)
        scaled = self.ev[k].sqrt() * xi
        if self.q is not None:  # by every component; q[k] would be n matrices
            scaled = (scaled @ self.q.flatten(0, 1).T).view(n, *self.means.shape)[torch.arange(n), k]
        return self.means[k] + scaled, k

    def flow_map(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        """The exact probability-flow solution at time s from x at time t; one component only.

        x_s = b_s y + a_s mu + Q diag(sqrt(v_s / v_t)) Q^T (x_t - b_t y - a_t mu)
        """
        if len(self.means) != 1:
            raise ValueError(f"flow_map is closed-form for one Gaussian, this mixture has {len(self.means)} components")
        times = (torch.as_tensor(v, dtype=torch.float64).expand(len(x)) for v in (t, s))
        (at, bt, st), (as_, bs, ss) = ([expand(v, x) for v in self.path.schedule(u)] for u in times)
        mu, ev = self.means[0], self.ev[0]
        y = 0.0 if self.y is None else self.y
        z = self._to_axes((x - bt * y - at * mu)[:, None])
        ratio = ((as_**2 * ev + ss**2) / (at**2 * ev + st**2)).sqrt()
        return bs * y + as_ * mu + self._from_axes(z * ratio[:, None])[:, 0]


def _divided(k: Tensor, v: Tensor) -> Tensor:
    """k / v, 0 where v = 0."""
    return torch.where(v == 0, 0.0, k / v)


def ring(path: Path, modes: int = 8, radius: float = 2.0, std: float = 0.1) -> Mixture:
    """`modes` equal Gaussians on a circle in the plane, in float64."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return Mixture(path, means, std**2 * torch.eye(2, dtype=torch.float64).expand(modes, 2, 2))


def orbits(
    path: Path, frames: int = 4, modes: int = 8, radius: float = 2.0, std: float = 0.2, rho: float = 0.9
) -> Mixture:
    """Sequences of points that go round the ring, a mode per frame, one way or the other: (B, 2 frames), frame after frame, in float64.

    2 modes Gaussians: a start and a sense; deviation `std` in every frame, correlation rho^|i - j| between frames i and j.
    """
    start, sense = (
        torch.arange(modes, dtype=torch.float64).repeat(2),
        torch.tensor([1.0, -1.0]).double().repeat_interleave(modes),
    )
    frame = torch.arange(frames, dtype=torch.float64)
    angle = (start[:, None] + sense[:, None] * frame) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], 2).flatten(1)
    cov = torch.kron(rho ** (frame[:, None] - frame).abs(), torch.eye(2, dtype=torch.float64))
    return Mixture(path, means, std**2 * cov.expand(2 * modes, -1, -1))


def correlated(path: Path, dim: int = 64, modes: int = 10, seed: int = 64) -> Mixture:
    """`modes` equal Gaussians in float64: means N(0, I), and covariances A A^T + 0.05^2 I, A: (dim, 8) of entries N(0, 0.5^2/8)."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(modes, dim, dtype=torch.float64, generator=g)
    a = torch.randn(modes, dim, 8, dtype=torch.float64, generator=g) * (0.5 / 8**0.5)
    return Mixture(path, means, a @ a.mT + 0.05**2 * torch.eye(dim, dtype=torch.float64))


def gaussian(path: Path, mean: float | Tensor, std: float | Tensor, dim: int = 1, y: Tensor | None = None) -> Mixture:
    """One Gaussian with independent coordinates in float64; mean and std are floats or (dim,)."""
    mu = torch.as_tensor(mean, dtype=torch.float64).expand(dim)
    var = torch.as_tensor(std, dtype=torch.float64).expand(dim) ** 2
    return Mixture(path, mu[None], torch.diag(var)[None], y=y)
