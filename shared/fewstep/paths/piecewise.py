"""Piecewise linear functions given by their values at 0, 1, ..., n: tabulated schedules."""

import torch
from torch import Tensor


def interpolate(table: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(value, right-hand slope) at u, elementwise, of the table (n + 1,); extended linearly; NaN gives NaN."""
    table = table.to(u)
    left = u.floor().nan_to_num(0.0).clamp(0, len(table) - 2).long()
    slope = table[left + 1] - table[left]
    return table[left] + slope * (u - left), slope


def invert(table: Tensor, value: Tensor) -> Tensor:
    """u with interpolate(table, u) = value, elementwise, of a strictly increasing table (n + 1,); extended likewise."""
    table = table.to(value)
    left = (torch.searchsorted(table, value.contiguous(), right=True) - 1).clamp(0, len(table) - 2)
    return left + (value - table[left]) / (table[left + 1] - table[left])
