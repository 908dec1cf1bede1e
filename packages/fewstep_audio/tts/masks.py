"""Lengths of padded batches as masks, and means over what is not padding.

shapes: lengths (B,) integers;  mask (B, 1, T) of 0 and 1
"""

import torch
from torch import Tensor


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """(B,) -> (B, 1, size) float32: 1 before each length, 0 from there on."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None]).float()[:, None]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over all valid frames of the batch, shape (); x (B, C, T).

    A mean after multiplying by the mask, as in public code, counts the padding too: it falls with the length of the longest item.
    """
    return (x * mask).sum() / (mask.sum() * x.shape[1])
