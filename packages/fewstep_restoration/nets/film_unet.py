"""The small ResShift U-Net: two levels of FiLM residual blocks with group normalisation (arXiv:2307.12348, scaled down)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from fewstep.nets import TimeEmbedding
from fewstep_restoration.nets.film_resnet import zero


class NormFiLMBlock(nn.Module):
    """skip(h) + conv(silu(film(norm(conv(silu(norm(h)))))))."""

    def __init__(self, cin: int, cout: int, embed: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, cin), nn.GroupNorm(8, cout)
        self.conv1, self.conv2 = nn.Conv2d(cin, cout, 3, padding=1), zero(nn.Conv2d(cout, cout, 3, padding=1))
        self.film = nn.Linear(embed, 2 * cout)
        self.skip = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        gain, shift = self.film(emb)[:, :, None, None].chunk(2, 1)
        inner = self.norm2(self.conv1(silu(self.norm1(h)))) * (1 + gain) + shift
        return self.skip(h) + self.conv2(silu(inner))


class FiLMUNet(nn.Module):
    """net(x: (B, C, H, W), t: (B,), lr: (B, L, H, W)) -> (B, C, H, W) with H and W multiples of 2; 2 + 3 + 2 blocks.

    Args:
        channels: C of the state; cond_channels: L; width: of the fine level (the coarse one is twice as wide).
    """

    stride = 2

    def __init__(self, channels: int = 48, cond_channels: int = 3, width: int = 48) -> None:
        super().__init__()
        self.channels, self.cond_channels, self.width = channels, cond_channels, width
        fine, coarse, embed = width, 2 * width, 2 * width
        self.time = TimeEmbedding(64, embed)
        self.first = nn.Conv2d(channels + cond_channels, fine, 3, padding=1)
        self.down = nn.ModuleList(NormFiLMBlock(fine, fine, embed) for _ in range(2))
        self.shrink = nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(NormFiLMBlock(coarse, coarse, embed) for _ in range(3))
        self.grow = nn.Conv2d(coarse, fine, 3, padding=1)
        self.up = nn.ModuleList([NormFiLMBlock(2 * fine, fine, embed), NormFiLMBlock(fine, fine, embed)])
        self.norm, self.last = nn.GroupNorm(8, fine), zero(nn.Conv2d(fine, channels, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor, t: Tensor, lr: Tensor) -> Tensor:
        """x: (B, C, H, W), t: (B,), lr: (B, L, H, W) -> (B, C, H, W), H and W even."""
        emb = silu(self.time(t))
        h = self.first(torch.cat([x, lr], 1).contiguous(memory_format=torch.channels_last))
        for block in self.down:
            h = block(h, emb)
        deep = self.shrink(h)
        for block in self.middle:
            deep = block(deep, emb)
        h = torch.cat([h, self.grow(nn.functional.interpolate(deep, scale_factor=2.0, mode="nearest"))], 1)
        for block in self.up:
            h = block(h, emb)
        return self.last(silu(self.norm(h)))
