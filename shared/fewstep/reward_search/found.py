"""What searches by a reward take and give, and the choice among candidates, for each sample of the batch its own."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# What a sample is worth: x0 (B, ...) -> (B,), larger is better; no gradient is taken.
Reward = Callable[[Tensor], Tensor]


class Found(NamedTuple):
    """x0: (B, ...) the best sample of each search; reward: (B,) of it; nfe: evaluations of a whole batch by the denoiser."""

    x0: Tensor
    reward: Tensor
    nfe: int


def pick(candidates: Tensor, index: Tensor) -> Tensor:
    """Of candidates (N, B, ...) those with index: (K, B), (K, B, ...)."""
    return candidates[index, torch.arange(candidates.shape[1], device=candidates.device)]
