"""Pictures to features by a network that nobody trained: what image critics look at where there is no pretrained one."""

import torch
from torch import Tensor, nn


class FrameEncoder(nn.Module):
    """Four convolutions with fixed random weights (He's scale), each but the first halving the sides; `levels.0` ... `levels.3` are its layers.

    Takes pictures (B, C, H, W), or the frames of clips (B, C, F, H, W) as so many pictures.

    Args:
        channels: of the pictures; width: of the features; seed: of the weights.
    """

    def __init__(self, channels: int = 3, width: int = 64, levels: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.channels, self.width, self.seed = channels, width, seed
        own = torch.Generator().manual_seed(seed)
        made: list[nn.Module] = []
        for k in range(levels):
            conv = nn.Conv2d(width if k else channels, width, 3, 2 if k else 1, 1)
            conv.weight.data = torch.randn(conv.weight.shape, generator=own) * (2 / conv.weight[0].numel()) ** 0.5
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            made.append(nn.Sequential(conv, nn.LeakyReLU(0.2)))
        self.levels = nn.ModuleList(made)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(pictures, width, h, w)."""
        x = x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x
        for level in self.levels:
            x = level(x)
        return x
