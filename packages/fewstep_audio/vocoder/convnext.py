"""ConvNeXt blocks: V2 over time with global response normalisation (arXiv:2301.00808), V1 over frequency and time, told a diffusion time
(arXiv:2201.03545).

    V2   h + W2 GRN(gelu(W1 LN(depthwise_7(h))))
         GRN(h)_c = gamma_c h_c n_c / mean(n) + beta_c + h_c,   n_c = the norm of channel c over time
    V1   h + gamma W2 silu(W1 (LN(depthwise_5x5(h)) (1 + scale(t)) + shift(t)))

shapes: h (B, C, T) and, of V1, (B, F, T, C)
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

# Numbers that go through a perceptron at a time where no gradient is kept: ten seconds of them leave the cache, at 1.15 times the cost.
SLAB = 2**18


class GlobalResponse(nn.Module):
    """GRN of (B, T, C); the norms are over all frames that are seen, so a part of an utterance is normalised by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, h: Tensor) -> Tensor:
        # Not Tensor.norm, whose gradient at a channel of zeros is not a number in half precision.
        norm = h.square().sum(1, keepdim=True).clamp_min(1e-24).sqrt()
        return self.gamma * (h * norm / (norm.mean(-1, keepdim=True) + 1e-6)) + self.beta + h


class ConvNeXtV2(nn.Module):
    """(B, C, T) -> the same.

    Args:
        channels, inner: C, and the width of the perceptron.
        drop_path: probability that a training sample skips the block (arXiv:1603.09382); the others are scaled by 1/(1 - p).
    """

    def __init__(self, channels: int, inner: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.depthwise = nn.Conv1d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.wide, self.response, self.narrow = (
            nn.Linear(channels, inner),
            GlobalResponse(inner),
            nn.Linear(inner, channels),
        )

    def forward(self, h: Tensor) -> Tensor:
        inner = self.norm(self.depthwise(h).mT)
        inner = self.narrow(self.response(gelu(self.wide(inner)))).mT
        if self.training and self.drop_path > 0:
            kept = torch.rand(len(h), 1, 1, device=h.device, dtype=h.dtype) >= self.drop_path
            inner = inner * kept / (1 - self.drop_path)
        return h + inner


class ConvNeXt(nn.Module):
    """(B, F, T, C), channels last, and an embedding of the time (B, E) -> (B, F, T, C).

    Args:
        channels, inner: C, and the width of the perceptron; embed: E.
        scale: gamma at the beginning; Vocos has 1 / the number of blocks.
    """

    REACH = 2

    def __init__(self, channels: int, inner: int, embed: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 2 * self.REACH + 1, padding=self.REACH, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.told = nn.Linear(embed, 2 * channels)
        self.wide, self.narrow = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.gamma = nn.Parameter(torch.full((channels,), scale))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        told = self.told(embedding)[:, None, None].chunk(2, -1)
        mixed = self.depthwise(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if torch.is_grad_enabled():
            return self.pointwise(h, mixed, *told)
        rows = max(SLAB // (len(h) * h.shape[2] * h.shape[3]), 1)
        parts = zip(h.split(rows, 1), mixed.split(rows, 1), strict=True)
        return torch.cat([self.pointwise(x, y, *told) for x, y in parts], 1)

    def pointwise(self, h: Tensor, mixed: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """h + gamma W2 silu(W1 (LN(mixed) (1 + scale) + shift))."""
        return h + self.gamma * self.narrow(silu(self.wide(self.norm(mixed) * (1 + scale) + shift)))
