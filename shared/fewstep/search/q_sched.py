"""Q-Sched: a few coefficients that make up for a quantised network (enyac-group/q-sched: m, k on a grid of 10 x 10 in [0.8, 1.1]).

before every step   x := c_x x,   net := c_e net,      c_e = linspace(m, 1, n),  c_x = linspace(k, 1, n)
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.solvers.table import Table, TableRow

AXIS = tuple(torch.linspace(0.8, 1.1, 10, dtype=torch.float64).tolist())


class ScaledModel(nn.Module):
    """c_e(label) net(x, label, **cond): c_e is given at some labels, linear between them and constant beyond.

    Args:
        net: as a denoiser takes it.
        labels: rising, as `Prediction.label` gives them; scales: c_e there.
    """

    def __init__(self, net: nn.Module, labels: Sequence[float], scales: Sequence[float]) -> None:
        super().__init__()
        if len(labels) != len(scales) or list(labels) != sorted(set(labels)):
            raise ValueError(f"scales need as many rising labels, got {len(labels)} labels and {len(scales)} scales")
        self.net, self.labels, self.scales = net, tuple(labels), tuple(scales)

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """x: (B, ...), t: (B,)."""
        c = self._scale(t)
        return self.net(x, t, **cond) * c.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))

    def _scale(self, t: Tensor) -> Tensor:
        # In t's own precision: labels reach networks rounded to it.
        labels, scales = torch.tensor(self.labels).to(t), torch.tensor(self.scales).to(t)
        if len(labels) == 1:
            return scales.expand(t.shape)
        right = torch.searchsorted(labels, t.contiguous()).clamp(1, len(labels) - 1)
        share = ((t - labels[right - 1]) / (labels[right] - labels[right - 1])).clamp(0, 1)
        return torch.lerp(scales[right - 1], scales[right], share)


def scaled_states(table: Table, scales: Sequence[float]) -> Table:
    """The table with the state multiplied by scales[i] before its i-th row; the result of the last one is left as it is.

    Raises:
        ValueError: another number of scales than rows.
    """
    if len(scales) != len(table.lines):
        raise ValueError(f"a table of {len(table.lines)} rows needs as many scales, not {len(scales)}")
    first = table.lines[0]
    lines = [TableRow(first.t, first.t, (scales[0],), (), first.uses, last=False)]
    for r, c in zip(table.lines, [*scales[1:], 1.0], strict=True):
        x, e = (tuple(w * c for w in v) for v in (r.x, r.e))
        lines.append(replace(r, x=x, e=e, noise=r.noise * c, y=r.y * c))
    return Table(table.path, tuple(lines))


def search_q_sched(
    denoiser: Denoiser, table: Table, objective: Callable[[Denoiser, Table], float], axis: Sequence[float] = AXIS
) -> tuple[Denoiser, Table]:
    """The denoiser with scaled outputs, and the table with scaled states, of least objective over all pairs (m, k) of the axis."""
    times = torch.tensor([r.t for r in table.lines if r.e], dtype=torch.float64)
    labels = denoiser.prediction.label(times, denoiser.path.coeffs(times, times)).tolist()
    n = len(labels)

    def candidate(m: float, k: float) -> tuple[Denoiser, Table]:
        c_e, c_x = (torch.linspace(v, 1.0, n, dtype=torch.float64).tolist() for v in (m, k))
        rising = sorted(zip(labels, c_e, strict=True))
        net = ScaledModel(denoiser.net, [v for v, _ in rising], [c for _, c in rising])
        return Denoiser(net, denoiser.path, denoiser.prediction, denoiser.told), scaled_states(table, c_x)

    best = grid_search(lambda m, k: objective(*candidate(m, k)), axis, axis)
    return candidate(*best)


def grid_search(objective: Callable[..., float], *axes: Sequence[float]) -> tuple[float, ...]:
    """The point of least objective among all combinations of the axes."""
    return min(itertools.product(*axes), key=lambda point: objective(*point))
