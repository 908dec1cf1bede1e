"""Narrower networks from wide ones: the first channels of every layer (AdcSR's channel pruning, arXiv:2411.13383).

    W' = W[: keep out, : keep in]

What a layer joins from several parts (the skip connections of a U-Net, gain and shift, queries, keys and values) is cut in each of them. The
parts of a network class are its `PARTS`: (pattern of parameter names, parts of each dimension).
"""

import copy
import inspect
import re
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.generator import Generator, pretrained


def pruned(source: str, keep: float = 0.75) -> Generator:
    """The generator of an artifact with a network of `keep` times the width: what recipes name as their student.

    Raises:
        ArtifactError: see `generator.pretrained`; ValueError: see `narrowed`.
    """
    model = pretrained(source)
    model.denoiser.net = narrowed(model.denoiser.net, keep)
    return model


def narrowed(net: nn.Module, keep: float) -> nn.Module:
    """A network of the same class whose width is keep times as large, rounded, with the first channels of the weights.

    Raises:
        ValueError: keep outside of (0, 1], or a class that does not say its width (`hidden` or `width`).
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is the share of the channels that stay, in (0, 1], not {keep}")
    name = next((n for n in ("hidden", "width") if isinstance(getattr(net, n, None), int)), None)
    if name is None:
        raise ValueError(f"{type(net).__name__} has no `hidden` or `width`: it is not known how to make it narrower")
    unit = cast(Any, net).UNIT if hasattr(net, "UNIT") else 1
    args = {k: copy.deepcopy(getattr(net, k)) for k in list(inspect.signature(type(net)).parameters)}
    args[name] = max(1, round(keep * args[name] / unit)) * unit
    small = type(net)(**args).to(next(net.parameters()))
    wide, parts = net.state_dict(), getattr(net, "PARTS", {})
    with torch.no_grad():
        for key, value in small.state_dict().items():
            value.copy_(cut(wide[key], value.shape, next((p for k, p in parts.items() if re.search(k, key)), ())))
    return small.train(net.training)


def cut(wide: Tensor, shape: tuple[int, ...], parts: tuple[int, ...] = ()) -> Tensor:
    """The first entries of a tensor, in each of the equal parts that its dimensions are made of; 1 part where none are given."""
    for dim, n in enumerate(shape):
        k = parts[dim] if dim < len(parts) else 1
        blocks = wide.unflatten(dim, (k, -1)).narrow(dim + 1, 0, n // k)
        wide = blocks.flatten(dim, dim + 1)
    return wide
