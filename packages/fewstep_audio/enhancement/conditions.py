"""Which spectrograms a network sees beside the state: the noisy one, and StoRM's denoised one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def beside(x: Tensor, names: Sequence[str], conditions: Mapping[str, Tensor]) -> Tensor:
    """x and the named conditions, each (B, 2, F, T), as channels: (B, 2 (1 + n), F, T).

    Raises:
        ValueError: a name without its condition.
    """
    missing = [name for name in names if name not in conditions]
    if missing:
        raise ValueError(f"the network sees {list(names)} beside its state, {missing} not given")
    return torch.cat([x, *(conditions[name] for name in names)], 1)
