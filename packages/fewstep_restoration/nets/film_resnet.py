"""A small residual network conditioned on time by feature-wise modulation (FiLM, arXiv:1709.07871). No normalisation, no stride.

Without statistics over the image its output at a pixel depends on a bounded neighbourhood, so tiles can be exact.
"""

import torch
from torch import Tensor, nn

from fewstep.nets import TimeEmbedding


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weight and bias 0: an untrained network outputs 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class FiLMBlock(nn.Module):
    """h + conv(relu((1 + g) conv(h) + c)), with (g, c) linear in the time embedding."""

    def __init__(self, width: int, embed: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(embed, 2 * width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        gain, shift = self.film(emb)[:, :, None, None].chunk(2, 1)
        return h + self.conv2(torch.relu(torch.addcmul(shift, self.conv1(h), 1 + gain)))


class FiLMResNet(nn.Module):
    """net(x: (B, C, H, W), t: (B,), lr: (B, L, H, W)) -> (B, C, H, W): the condition is concatenated; radius 2 + 2 blocks.

    Args:
        channels: C of the state; cond_channels: L; width, blocks: of the trunk; stride: 1, sizes need no padding.
    """

    stride = 1

    def __init__(self, channels: int = 48, cond_channels: int = 3, width: int = 48, blocks: int = 5) -> None:
        super().__init__()
        self.channels, self.cond_channels, self.width, self.blocks = channels, cond_channels, width, blocks
        self.time = TimeEmbedding(64, 64)
        self.first = nn.Conv2d(channels + cond_channels, width, 3, padding=1)
        self.trunk = nn.ModuleList(FiLMBlock(width, 64) for _ in range(blocks))
        self.last = zero(nn.Conv2d(width, channels, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor, t: Tensor, lr: Tensor) -> Tensor:
        """x: (B, C, H, W), t: (B,), lr: (B, L, H, W) -> (B, C, H, W)."""
        emb = self.time(t)
        h = self.first(torch.cat([x, lr], 1).contiguous(memory_format=torch.channels_last))
        for block in self.trunk:
            h = block(h, emb)
        return self.last(h)
