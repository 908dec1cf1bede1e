"""Empirical model statistics of DPM-Solver-v3 (arXiv:2310.13268), one set per node lambda_j = first + j/N (last - first).

z = (x - b y)/a,   rho = s/a = exp(-lambda),   ' = total derivative in lambda along the probability-flow ODE:  z' = x0 - z

    f = (s eps - l (x - b y))/a = (1 - l) z - x0
    l = s E[diag d eps/dx] = 1 - a E[diag d x0/dx]         makes f as independent of x as a linear term can
    s = cov(f, f')/var(f),   b = E f' - s E f              the regression f' ~ s f + b

None of them depends on the path: only on the data and on lambda. The paper's code differentiates eps; x0 gives the same numbers
without the loss of digits of rho eps = z - x0 at high noise.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.paths import Path

# Per node: a number each, or (N + 1, ...) with one number per coordinate.
Statistic = tuple[float, ...] | Tensor


class Nodes(NamedTuple):
    """lambda (N + 1,), l, and the integrals over lambda that steps need, by the cumulative trapezoidal rule from the first node.

    L = INT l,   S = INT s,   B = INT exp(-S) b;   (N + 1,) or (N + 1, ...) float64
    """

    lam: Tensor
    l: Tensor
    L: Tensor
    S: Tensor
    B: Tensor


@dataclass(frozen=True)
class EMS:
    """l, s, b at N + 1 nodes even in lambda from `first` (noisy) to `last`; numbers are kept in artifacts, tensors by `save_ems`."""

    first: float
    last: float
    l: Statistic
    s: Statistic
    b: Statistic

    def __post_init__(self) -> None:
        if not self.first < self.last or not len(self.l) == len(self.s) == len(self.b) >= 2:
            raise ValueError(
                f"EMS needs first < last and l, s, b of the same >= 2 nodes, got [{self.first}, {self.last}] and "
                f"{len(self.l)}, {len(self.s)}, {len(self.b)} nodes"
            )

    def nodes(self) -> Nodes:
        """Nodes with their integrals."""
        l, s, b = (torch.as_tensor(v, dtype=torch.float64).cpu() for v in (self.l, self.s, self.b))
        lam = torch.linspace(self.first, self.last, len(l), dtype=torch.float64)

        def integral(v: Tensor) -> Tensor:
            total = torch.cumulative_trapezoid(v, dx=(self.last - self.first) / (len(v) - 1), dim=0)
            return torch.cat([torch.zeros_like(v[:1]), total])

        big_s = integral(s)
        return Nodes(lam, l, integral(l), big_s, integral((-big_s).exp() * b))

    def place(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """(index of the nearest node, -1 beyond the nodes; whether lam lies on it), elementwise; ties go to the noisier node."""
        n = len(self.l) - 1
        at = (lam - self.first) / (self.last - self.first) * n
        near = (at - 0.5 - 1e-9).ceil()
        inside = (near >= 0) & (near <= n)
        return torch.where(inside, near, -1.0).long(), inside & ((at - near).abs() < 1e-9)


def data_form(first: float, last: float, n: int) -> EMS:
    """The statistics with which DPM-Solver-v3 is the exponential multistep in x0 (the official `degenerated`)."""
    return EMS(first, last, (1.0,) * (n + 1), (0.0,) * (n + 1), (0.0,) * (n + 1))


def noise_form(first: float, last: float, n: int) -> EMS:
    """The statistics with which DPM-Solver-v3 is the exponential multistep in eps: f = rho eps falls by exp(-lambda), so s = -1."""
    return EMS(first, last, (0.0,) * (n + 1), (-1.0,) * (n + 1), (0.0,) * (n + 1))


class Moments(NamedTuple):
    """At one node, with r = (1 - l)(x0 - z) - x0', so that f' = r - l' z: l, means of f, z, r, and var f, cov(f, z), cov(f, r)."""

    l: Tensor
    f: Tensor
    z: Tensor
    r: Tensor
    ff: Tensor
    fz: Tensor
    fr: Tensor


@torch.no_grad()
def estimate_ems(
    denoise: Denoise,
    path: Path,
    x0: Tensor,
    nodes: int = 120,
    start: float | None = None,
    end: float | None = None,
    y: Tensor | None = None,
    per: Literal["node", "coordinate"] = "node",
    probes: int | None = 1,
    batch: int = 256,
    generator: torch.Generator | None = None,
) -> EMS:
    """The statistics of a denoiser on data x0: (K, ...), K about 1000. Costs 1 + probes directional derivatives per sample and node.

    Noise and probes are the same at every node, which keeps l smooth in lambda: it is differentiated.

    Args:
        denoise: (x_t, t) -> Estimate at times t: (B,). Where it has conditions or an anchor bound, batch must be at least K.
        nodes: N; the N + 1 nodes lie between the times `start` and `end`, the path's own where not given.
        y: (K, ...) the anchor, on anchored paths.
        per: one number per node (kept in artifacts), or one per node and coordinate.
        probes: Rademacher probes of the diagonal (Hutchinson); None takes it exactly, by one derivative per coordinate.
    Raises:
        ValueError: where lambda is infinite at an end, or there are fewer than 2 nodes.
    """
    t_hi, t_lo = path.t_max if start is None else start, path.t_min if end is None else end
    first, last = path.log_snr(torch.tensor([t_hi, t_lo], dtype=torch.float64)).tolist()
    if not (math.isfinite(first) and math.isfinite(last)) or nodes < 2:
        raise ValueError(
            f"EMS need nodes >= 2 and times with finite lambda, got {nodes} nodes and lambda {first} at {t_hi}, {last} at {t_lo}"
        )
    batches = _batches(x0, y, probes, batch, generator)
    dims = list(range(x0.ndim)) if per == "node" else [0]
    found = []
    for lam in torch.linspace(first, last, nodes + 1, dtype=torch.float64):
        looks = (_look(denoise, path, path.time_of_log_snr(lam), b) for b in batches)
        found.append(_moments(Look(*map(torch.cat, zip(*looks, strict=True))), dims))
    moments = Moments(*(torch.stack(v).cpu() for v in zip(*found, strict=True)))
    return _regress(first, last, moments, x0.double().square().mean(dims).cpu())


class Batch(NamedTuple):
    """Samples with their noise, anchor, and the directions v of sum v * (J v), the diagonal of J; each (B, ...)."""

    x0: Tensor
    eps: Tensor
    y: Tensor | None
    directions: tuple[Tensor, ...]


def _batches(
    x0: Tensor, y: Tensor | None, probes: int | None, size: int, generator: torch.Generator | None
) -> list[Batch]:
    device = x0.device if generator is None else generator.device

    def normal() -> Tensor:
        return torch.randn(x0.shape, dtype=x0.dtype, device=device, generator=generator).to(x0.device)

    eps = normal()
    if probes is None:
        directions = [v.expand_as(x0) for v in torch.eye(x0[0].numel()).to(x0).reshape(-1, 1, *x0.shape[1:])]
    else:
        directions = [normal().sign() / probes**0.5 for _ in range(probes)]
    parts = [slice(i, i + size) for i in range(0, len(x0), size)]
    return [Batch(x0[p], eps[p], None if y is None else y[p], tuple(v[p] for v in directions)) for p in parts]


class Look(NamedTuple):
    """At samples x_t: z, the estimate of x0, its derivative along the ODE, and 1 - a diag dx0/dx; each (B, ...) float64."""

    z: Tensor
    x0: Tensor
    moved: Tensor
    l: Tensor


def _look(denoise: Denoise, path: Path, t: Tensor, batch: Batch) -> Look:
    times = t.expand(len(batch.x0)).to(batch.x0.device).contiguous()
    x, c = path.sample(batch.x0, batch.eps, times, batch.y), path.coeffs(times, batch.x0)
    estimate = denoise(x, times)

    def along(dx: Tensor, dt: Tensor) -> Tensor:
        return directional(lambda x, t: denoise(x, t).x0, (x, times), (dx, dt)).double()

    rate = 1 / (c.da / c.a - c.ds / c.s)  # dt/dlambda
    moved = along(rate * path.velocity(estimate.x0, estimate.eps, times, batch.y), rate.flatten().to(times))
    # Steps of s v, the scale of the noise, suit the finite difference.
    diagonal = sum(
        (v * along(c.s * v, torch.zeros_like(times)) for v in batch.directions),
        torch.zeros_like(x, dtype=torch.float64),
    )
    z = (x if batch.y is None else x - c.b * batch.y).double() / c.a.double()
    return Look(z, estimate.x0.double(), moved, 1 - diagonal * (c.a / c.s).double())


def directional(f: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Tensor:
    """df(at + h along)/dh at h = 0: forward mode, or a central difference where f does not support that."""
    try:
        return torch.func.jvp(f, at, along)[1]
    except (NotImplementedError, RuntimeError):  # operations without a forward-mode formula raise either
        h = torch.finfo(at[0].dtype).eps ** (1 / 3)
        ahead, behind = (f(*(p + k * d for p, d in zip(at, along, strict=True))) for k in (h, -h))
        return (ahead - behind) / (2 * h)


def _moments(look: Look, dims: list[int]) -> Moments:
    l = look.l.mean(dims)
    f, r = (1 - l) * look.z - look.x0, (1 - l) * (look.x0 - look.z) - look.moved
    means = [v.mean(dims) for v in (f, look.z, r)]
    df, dz, dr = (v - m for v, m in zip((f, look.z, r), means, strict=True))
    return Moments(l, *means, *((df * d).mean(dims) for d in (df, dz, dr)))


def _regress(first: float, last: float, m: Moments, size: Tensor) -> EMS:
    """s and b from the moments of all nodes; size: E x0^2.

    Where f does not vary (Gaussian data) cov(f, f')/var(f) is 0/0: the floor, a millionth of the size of the data, makes s vanish.
    """
    slope = _slope(m.l, (last - first) / (len(m.l) - 1))
    s = (m.fr - slope * m.fz) / (m.ff + 1e-12 * size)
    b = m.r - slope * m.z - s * m.f
    kept = [v if v.ndim > 1 else tuple(v.tolist()) for v in (m.l, s, b)]
    return EMS(first, last, *kept)


def _slope(l: Tensor, spacing: float) -> Tensor:
    """dl/dlambda = l (1 - l) dlogit(l)/dlambda by differences along the nodes, of l itself where an estimate is outside (0, 1).

    On Gaussian data logit(l) = -2 lambda - log var is linear, so this is exact there; differences of l would drown f' at high noise.
    """
    rate, plain = (torch.gradient(v, spacing=spacing, dim=0, edge_order=2)[0] for v in (l.logit(), l))
    return torch.where((l > 0) & (l < 1) & rate.isfinite(), l * (1 - l) * rate, plain)


def save_ems(ems: EMS, file: str | os.PathLike[str]) -> None:
    """Write statistics as safetensors: tensors l, s, b (float64) and the ends as metadata."""
    tensors = {k: torch.as_tensor(getattr(ems, k), dtype=torch.float64).cpu().contiguous() for k in ("l", "s", "b")}
    save_file(tensors, file, metadata={"ends": json.dumps([ems.first, ems.last])})


def load_ems(file: str | os.PathLike[str]) -> EMS:
    """The statistics that `save_ems` wrote.

    Raises:
        ValueError: where the file is something else.
    """
    with safe_open(file, framework="pt") as stored:
        metadata, names = stored.metadata() or {}, set(stored.keys())
        if "ends" not in metadata or names != {"l", "s", "b"}:
            raise ValueError(
                f"{os.fspath(file)} holds no EMS: they are tensors l, s, b with metadata `ends`, not {sorted(names)}"
            )
        kept = [stored.get_tensor(k) for k in ("l", "s", "b")]
    first, last = json.loads(metadata["ends"])
    return EMS(first, last, *(v if v.ndim > 1 else tuple(v.tolist()) for v in kept))
