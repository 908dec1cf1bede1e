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
from dataclasses import dataclass, replace
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
    l: Tensor  # noqa: E741
    L: Tensor
    S: Tensor
    B: Tensor


@dataclass(frozen=True)
class EMS:
    """l, s, b at N + 1 nodes even in lambda from `first` (noisy) to `last`; numbers are kept in artifacts, tensors by `save_ems`."""

    first: float
    last: float
    l: Statistic  # noqa: E741
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
        l, s, b = (torch.as_tensor(v, dtype=torch.float64).cpu() for v in (self.l, self.s, self.b))  # noqa: E741
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
    """The statistics with which DPM-Solver-v3 is the exponential multistep in eps."""
    return replace(data_form(first, last, n), l=(0.0,) * (n + 1))


class Moments(NamedTuple):
    """At one node, with r = (1 - l)(x0 - z) - x0', so that f' = r - l' z: l, means of f, z, r, and var f, cov(f, z), cov(f, r)."""

    l: Tensor  # noqa: E741
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
    noise, signs = _normal(x0, generator), [_normal(x0, generator).sign() for _ in range(probes or 0)]
    found = []
    for lam in torch.linspace(first, last, nodes + 1, dtype=torch.float64):
        t, parts = path.time_of_log_snr(lam), []
        for i in range(0, len(x0), batch):
            part = slice(i, i + batch)
            anchor = None if y is None else y[part]
            parts.append(
                _look(denoise, path, t, x0[part], noise[part], anchor, None if probes is None else [v[part] for v in signs])
            )
        found.append(_moments(*(torch.cat(v) for v in zip(*parts, strict=True)), per=per))
    return _regress(first, last, Moments(*(torch.stack(v).cpu() for v in zip(*found, strict=True))), x0.dtype)


def _normal(x: Tensor, generator: torch.Generator | None) -> Tensor:
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)


Looks = tuple[Tensor, Tensor, Tensor, Tensor]


def _look(
    denoise: Denoise, path: Path, t: Tensor, x0: Tensor, eps: Tensor, y: Tensor | None, signs: list[Tensor] | None
) -> Looks:
    """(z, x0 estimate, its derivative along the ODE, 1 - a diag dx0/dx) at x_t of these samples, each (B, ...) float64."""
    times = t.expand(len(x0)).to(x0.device).contiguous()
    x, c = path.sample(x0, eps, times, y), path.coeffs(times, x0)
    estimate = denoise(x, times)

    def along(dx: Tensor, dt: Tensor) -> Tensor:
        return directional(lambda x, t: denoise(x, t).x0, (x, times), (dx, dt)).double()

    rate = 1 / (c.da / c.a - c.ds / c.s)  # dt/dlambda
    velocity = path.velocity(estimate.x0, estimate.eps, times, y)
    moved = along(rate * velocity, rate.flatten().to(times))
    if signs is None:
        signs = [v.expand_as(x) for v in torch.eye(x[0].numel()).to(x).reshape(-1, 1, *x.shape[1:])]
        mean = 1.0
    else:
        mean = 1 / len(signs)
    still, ratio = torch.zeros_like(times), (c.a / c.s).double()
    diagonal = mean * sum((v * ratio * along(c.s * v, still) for v in signs), torch.zeros_like(x, dtype=torch.float64))
    z = (x if y is None else x - c.b * y).double() / c.a.double()
    return z, estimate.x0.double(), moved, 1 - diagonal


def directional(f: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Tensor:
    """df(at + h along)/dh at h = 0: forward mode, or a central difference where f does not support that."""
    try:
        return torch.func.jvp(f, at, along)[1]
    except (NotImplementedError, RuntimeError):  # operations without a forward-mode formula raise either
        h = torch.finfo(at[0].dtype).eps ** (1 / 3)
        ahead, behind = (f(*(p + k * d for p, d in zip(at, along, strict=True))) for k in (h, -h))
        return (ahead - behind) / (2 * h)


def _moments(z: Tensor, x0: Tensor, moved: Tensor, l: Tensor, per: str) -> Moments:  # noqa: E741
    dims = [0] if per == "coordinate" else list(range(z.ndim))
    l = l.mean(dims)  # noqa: E741
    f, r = (1 - l) * z - x0, (1 - l) * (x0 - z) - moved
    means = [v.mean(dims) for v in (f, z, r)]
    df, dz, dr = (v - m for v, m in zip((f, z, r), means, strict=True))
    return Moments(l, *means, *((df * d).mean(dims) for d in (df, dz, dr)))


def _regress(first: float, last: float, m: Moments, dtype: torch.dtype) -> EMS:
    """s and b from the moments of all nodes. Where f does not vary beyond rounding (one Gaussian), s = 0 and b = E f'."""
    slope = torch.gradient(m.l, spacing=(last - first) / (len(m.l) - 1), dim=0, edge_order=2)[0]
    noise = (64 * torch.finfo(dtype).eps) ** 2 * (m.f**2 + ((1 - m.l) * m.z) ** 2)
    s = torch.where(m.ff > noise, (m.fr - slope * m.fz) / m.ff, 0.0)
    b = m.r - slope * m.z - s * m.f
    kept = [v if v.ndim > 1 else tuple(v.tolist()) for v in (m.l, s, b)]
    return EMS(first, last, *kept)


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
            raise ValueError(f"{os.fspath(file)} holds no EMS: they are tensors l, s, b with metadata `ends`, not {sorted(names)}")
        kept = [stored.get_tensor(k) for k in ("l", "s", "b")]
    first, last = json.loads(metadata["ends"])
    return EMS(first, last, *(v if v.ndim > 1 else tuple(v.tolist()) for v in kept))
