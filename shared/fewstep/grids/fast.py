"""Nodes of DPM-Solver-fast (arXiv:2206.00927, appendix D.4): one node per evaluation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.grids.base import Grid
from fewstep.grids.log_snr import spanned
from fewstep.paths import Path


@dataclass(frozen=True)
class Fast(Grid):
    """K intervals equal in lambda, one per step of DPM-Solver-fast, each divided evenly by its order.

    order: 2 or 3, the highest order; n evaluations make steps of orders 3, 3, ..., 2, 1 and the like (`DPMFast`).
    start, end: as in LogSNR: the finite times between which lambda is divided; steps beyond them are of first order.
    """

    order: int = 3
    start: float | None = None
    end: float | None = None

    def __call__(self, path: Path, n: int) -> Tensor:
        if self.order not in (1, 2, 3):
            raise ValueError(f"Fast takes order 1, 2 or 3, not {self.order}")
        return spanned(path, n, self.start, self.end, self._fractions)

    def _fractions(self, n: int) -> Tensor:
        orders = fast_orders(self.order, n)
        nodes = [step + j / k for step, k in enumerate(orders) for j in range(k)]
        return torch.tensor([*nodes, len(orders)], dtype=torch.float64) / len(orders)


def fast_orders(order: int, n: int) -> list[int]:
    """Orders of the steps of n evaluations: [3, ..., 3, 2, 1], [3, ..., 3, 1] or [3, ..., 3, 2]; [2, ..., 2(, 1)]."""
    if order == 3 and n and n % 3 == 0:
        return [3] * (n // 3 - 1) + [2, 1]
    return [order] * (n // order) + ([n % order] if n % order else [])
