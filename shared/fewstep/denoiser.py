"""Denoiser = network + path + prediction: from (x_t, t) and conditions to an Estimate of (x0, eps)."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from fewstep.estimate import Estimate
from fewstep.paths import Path
from fewstep.prediction import Prediction

Cond = Mapping[str, Tensor]


class Denoise(Protocol):
    """A bound denoiser: all that a solver sees. x: (B, ...); t: a float, or (B,) for per-sample times."""

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate: ...


class Denoiser(nn.Module):
    """net(i x_t + j y, label, **cond) read as `prediction` on `path`.

    Args:
        net: (B, ...), (B,) labels and named conditions -> (B, ...).
        path: the affine path the network was trained on.
        prediction: what the output means, and how input and time are scaled (preconditioners included).
    """

    def __init__(self, net: nn.Module, path: Path, prediction: Prediction) -> None:
        super().__init__()
        self.net, self.path, self.prediction = net, path, prediction

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None, y: Tensor | None = None) -> Estimate:
        """Estimate at per-sample times t: (B,)."""
        c = self.path.coeffs(t, x)
        out = self.raw(x, t, cond, y)
        k = self.prediction.affine(c)
        return Estimate(
            lambda: combine(k.x0_x, x, k.x0_out, out, k.x0_y, y),
            lambda: combine(k.eps_x, x, k.eps_out, out, k.eps_y, y),
        )

    def raw(self, x: Tensor, t: Tensor, cond: Cond | None = None, y: Tensor | None = None) -> Tensor:
        """The network's own output at per-sample times t: (B,), to be compared with `prediction.target`."""
        c = self.path.coeffs(t, x)
        i, j = self.prediction.input_scale(c)
        seen = i * x if y is None else i * x + j * y
        return self.net(seen, self.prediction.label(t, c).to(x.dtype), **(cond or {}))

    def bind(self, cond: Cond | None = None, y: Tensor | None = None) -> "Bound":
        """The plain callable (x, t) -> Estimate with conditions and anchor fixed."""
        return Bound(self, cond, y)


def combine(kx: Tensor, x: Tensor, ko: Tensor, out: Tensor, ky: Tensor, y: Tensor | None) -> Tensor:
    """kx x + ko out + ky y."""
    z = kx * x + ko * out
    return z if y is None else z + ky * y


class Bound:
    """A denoiser with its conditions fixed. At float times all scalars come from a table made once per grid."""

    def __init__(self, denoiser: Denoiser, cond: Cond | None, y: Tensor | None) -> None:
        self.denoiser, self.cond, self.y = denoiser, cond or {}, y
        self._table: dict[float, tuple[float, ...]] = {}
        self._labels: dict[float, Tensor] = {}

    def prepare(self, times: Iterable[float], x: Tensor) -> None:
        """Tabulate the scalars and labels of these times for states like x: nothing is left to compute per step."""
        t = torch.tensor([v for v in times if v not in self._labels], dtype=torch.float64)
        if not len(t):
            return
        prediction = self.denoiser.prediction
        c = self.denoiser.path.coeffs(t, t)
        columns = (*prediction.affine(c), *prediction.input_scale(c))
        labels = prediction.label(t, c).to(x.device, x.dtype)[:, None].expand(len(t), len(x)).contiguous()
        for time, *row, label in zip(t.tolist(), *(v.tolist() for v in columns), labels, strict=True):
            self._table[time], self._labels[time] = tuple(row), label

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if isinstance(t, Tensor):
            return self.denoiser(x, t, self.cond, self.y)
        label = self._labels.get(t)
        if label is None or label.shape[0] != x.shape[0] or label.dtype != x.dtype:
            self._labels.pop(t, None)
            self.prepare([t], x)
            label = self._labels[t]
        x0_x, x0_out, x0_y, eps_x, eps_out, eps_y, i, j = self._table[t]
        y = self.y
        out = self.denoiser.net(scaled(i, x, j, y), label, **self.cond)
        return Estimate(lambda: weigh(x0_x, x, x0_out, out, x0_y, y), lambda: weigh(eps_x, x, eps_out, out, eps_y, y))


def scaled(i: float, x: Tensor, j: float, y: Tensor | None) -> Tensor:
    """i x + j y without touching x where i = 1, j = 0."""
    if i != 1.0:
        x = x * i
    return x if y is None or j == 0.0 else torch.add(x, y, alpha=j)


def weigh(kx: float, x: Tensor, ko: float, out: Tensor, ky: float, y: Tensor | None) -> Tensor:
    """kx x + ko out + ky y for plain numbers, skipping terms whose weight is 0."""
    if kx == 0.0:
        z = out if ko == 1.0 else out * ko
    else:
        z = (x * kx).add_(out, alpha=ko)
    return z if y is None or ky == 0.0 else torch.add(z, y, alpha=ky)
