"""Normalisations that padding has no part in."""

import torch
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each frame, x (B, C, T); eps 1e-4 as in Glow-TTS's code."""

    def __init__(self, channels: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps)
        return x * self.weight[:, None] + self.bias[:, None]


class MaskedGroupNorm(nn.Module):
    """Group normalisation with the moments of the frames that are there: x (B, C, ..., T), mask (B, 1, ..., T).

    That of public code includes the padding, so that what an item becomes depends on its neighbours in the batch.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups")
        self.groups, self.channels, self.eps = groups, channels, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        parts, inside = x.unflatten(1, (self.groups, -1)), mask[:, None]
        inner = tuple(range(2, parts.ndim))
        share = inside / (inside.sum(inner, keepdim=True) * (parts[0, 0].numel() / inside[0, 0].numel()))
        parts = parts - (parts * share).sum(inner, keepdim=True)
        parts = parts * torch.rsqrt((parts.square() * share).sum(inner, keepdim=True) + self.eps)
        shape = (-1, *[1] * (x.ndim - 2))
        return parts.flatten(1, 2) * self.weight.reshape(shape) + self.bias.reshape(shape)
