"""Denoiser = network + path + prediction: from (x_t, t) and conditions to an Estimate of (x0, eps)."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fewstep.estimate import Estimate
from fewstep.paths import Coeffs, Path
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
        told: values of the network's further scalar conditions (guidance scale "w", ...), for callers that give none.
    """

    def __init__(
        self, net: nn.Module, path: Path, prediction: Prediction, told: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.net, self.path, self.prediction, self.told = net, path, prediction, dict(told or {})

    @classmethod
    def from_diffusers(cls, source: Any, scheduler: Any | None = None) -> "Denoiser":
        """The network of a diffusers pipeline, or a diffusers model with its scheduler, as it was trained: path and prediction are
        those of the scheduler's configuration, conditions are the model's own arguments (`encoder_hidden_states`, ...).

        Raises:
            ValueError: models and schedulers that have no equivalent here.
        """
        from fewstep.integrations.diffusers_model import parts  # diffusers takes seconds to import

        return cls(*parts(source, scheduler))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None, y: Tensor | None = None) -> Estimate:
        """Estimate at per-sample times t: (B,)."""
        c = self.path.coeffs(t, x)
        out = self._output(x, t, c, cond, y)
        k = self.prediction.affine(c)
        return Estimate(
            lambda: combine(k.x0_x, x, k.x0_out, out, k.x0_y, y),
            lambda: combine(k.eps_x, x, k.eps_out, out, k.eps_y, y),
        )

    def raw(self, x: Tensor, t: Tensor, cond: Cond | None = None, y: Tensor | None = None) -> Tensor:
        """The network's own output at per-sample times t: (B,), to be compared with `prediction.target`."""
        return self._output(x, t, self.path.coeffs(t, x), cond, y)

    def _output(self, x: Tensor, t: Tensor, c: Coeffs, cond: Cond | None, y: Tensor | None) -> Tensor:
        i, j = self.prediction.input_scale(c)
        seen = i * x if y is None else i * x + j * y
        label = self.prediction.label(t, c).to(label_dtype(x))
        return self.net(seen, label, **self.conditions(cond or {}, label))

    def conditions(self, cond: Cond, label: Tensor) -> Cond:
        """cond, completed by what the network is `told`, as (B,) like label."""
        if self.told.keys() <= cond.keys():
            return cond
        return {k: torch.full_like(label, v) for k, v in self.told.items()} | dict(cond)

    def bind(self, cond: Cond | None = None, y: Tensor | None = None) -> "Bound":
        """The plain callable (x, t) -> Estimate with conditions and anchor fixed."""
        return Bound(self, cond, y)


def label_dtype(x: Tensor) -> torch.dtype:
    """Real, and of at least 32 bits: in bfloat16 the label 999 would be 1000."""
    return torch.promote_types(x.dtype.to_real(), torch.float32)


def combine(kx: Tensor, x: Tensor, ko: Tensor, out: Tensor, ky: Tensor, y: Tensor | None) -> Tensor:
    """kx x + ko out + ky y."""
    z = kx * x + ko * out
    return z if y is None else z + ky * y


class Scalars(NamedTuple):
    """The plain numbers of one time: the rows of Affine, and what the network sees, i x_t + j y, with its label."""

    x0: tuple[float, float, float]
    eps: tuple[float, float, float]
    i: float
    j: float
    label: float


@lru_cache(maxsize=1024)
def tabulate(path: Path, prediction: Prediction, times: tuple[float, ...]) -> dict[float, Scalars]:
    """Scalars of many times at once, in float64, remembered: nothing is left to compute per step."""
    t = torch.tensor(times, dtype=torch.float64)
    c = path.coeffs(t, t)
    columns = (*prediction.affine(c), *prediction.input_scale(c), prediction.label(t, c))
    rows = zip(*(v.expand(len(t)).tolist() for v in columns), strict=True)
    return {time: Scalars(r[:3], r[3:6], *r[6:]) for time, r in zip(times, rows, strict=True)}


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is remembered must serve training too
def labels(
    path: Path, prediction: Prediction, times: tuple[float, ...], batch: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """The network's labels (B,) at each of these times, made at once."""
    table = tabulate(path, prediction, times)
    values = torch.tensor([table[t].label for t in times], dtype=dtype).to(device)
    return values[:, None].expand(-1, batch).contiguous().unbind()


class Bound:
    """A denoiser with its conditions fixed. At float times all scalars come from a table."""

    def __init__(self, denoiser: Denoiser, cond: Cond | None, y: Tensor | None) -> None:
        self.denoiser, self.net, self.cond, self.y = denoiser, denoiser.net, cond or {}, y
        self._table: dict[float, Scalars] = {}
        self._labels: dict[float, Tensor] = {}
        self._like: tuple[object, ...] = ()

    def prepare(self, times: tuple[float, ...], x: Tensor) -> dict[float, Scalars]:
        """Tabulate the scalars and labels of these times for states like x; returns the scalars."""
        like = (x.shape[0], x.dtype, x.device)
        if self._like != like:
            self._labels, self._like = {}, like
        table = tabulate(self.denoiser.path, self.denoiser.prediction, times)
        self._table |= table
        self._labels |= zip(times, self.labels(times, x), strict=True)
        return table

    def labels(self, times: tuple[float, ...], x: Tensor) -> tuple[Tensor, ...]:
        """What the network is told at each of these times: (B,) each, for states like x."""
        return labels(self.denoiser.path, self.denoiser.prediction, times, x.shape[0], label_dtype(x), x.device)

    def output(self, x: Tensor, t: float) -> Tensor:
        """The network's raw output at a float time."""
        if t not in self._labels or self._like != (x.shape[0], x.dtype, x.device):
            self.prepare((t,), x)
        return self.call(x, self._table[t], self._labels[t])

    def call(self, x: Tensor, k: Scalars, label: Tensor) -> Tensor:
        """The network's raw output at the time of these scalars and labels."""
        seen = x if k.i == 1.0 else x * k.i
        if self.y is not None and k.j != 0.0:
            seen = seen.add(self.y, alpha=k.j)
        cond = self.denoiser.conditions(self.cond, label) if self.denoiser.told else self.cond
        return self.net(seen, label, **cond)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if isinstance(t, Tensor):
            return self.denoiser(x, t, self.cond, self.y)
        out = self.output(x, t)
        row, y = self._table[t], self.y
        return Estimate(lambda: weigh(row.x0, x, out, y), lambda: weigh(row.eps, x, out, y))


def weigh(k: tuple[float, float, float], x: Tensor, out: Tensor, y: Tensor | None) -> Tensor:
    """k[0] x + k[1] out + k[2] y for plain numbers."""
    z = (x * k[0]).add_(out, alpha=k[1])
    return z if y is None or k[2] == 0.0 else z.add_(y, alpha=k[2])
