"""Conditions dropped for a share of a batch: one network learns both branches of guidance (arXiv:2207.12598)."""

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.generator import Generator


def drop_conditions(generator: Generator, cond: Cond, x0: Tensor, share: float) -> tuple[Cond, Tensor]:
    """(cond with a random share replaced by `generator.unconditional`, where they are kept: (B,) booleans).

    Nothing is drawn for share = 0.
    Raises:
        ValueError: generators without an unconditional branch, where share > 0.
    """
    if share == 0.0:
        return cond, torch.ones(len(x0), dtype=torch.bool, device=x0.device)
    without = {**cond, **generator.unconditional(cond)}
    kept = torch.rand(len(x0), device=x0.device) >= share
    return {k: torch.where(kept.reshape(-1, *[1] * (v.ndim - 1)), v, without[k]) for k, v in cond.items()}, kept
