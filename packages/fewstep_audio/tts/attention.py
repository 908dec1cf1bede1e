"""Self-attention over symbols or frames that padding has no part in, with the positions of text encoders.

    windowed   q_i (k_j + e^K_{j-i}) / sqrt(d),  sum_j p_ij (v_j + e^V_{j-i}),  e = 0 for |j - i| > window     (arXiv:1803.02155)
    rotary     the first half of each head's q and k is turned by an angle that grows with the position         (arXiv:2104.09864)

shapes: x (B, C, T), mask (B, 1, T);  inside a head q, k, v (B, H, T, d)
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Attention(nn.Module, ABC):
    """Multi-head self-attention; subclasses say what positions do."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads")
        self.width, self.heads, self.dropout = width, heads, dropout
        self.query, self.key, self.value, self.out = (nn.Conv1d(width, width, 1) for _ in range(4))
        for conv in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(conv.weight)
        self.drop = nn.Dropout(dropout)

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """(B, H, T, d) of (B, H, T, d) and mask (B, 1, 1, T)."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T); masked frames are not attended to."""
        q, k, v = (f(x).unflatten(1, (self.heads, -1)).mT for f in (self.query, self.key, self.value))
        return self.out(self.attend(q, k, v, mask[:, None]).mT.flatten(1, 2))

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        """softmax over what is there."""
        return self.drop(scores.masked_fill(mask == 0, -math.inf).softmax(-1))


class WindowedAttention(Attention):
    """window: relative positions -window .. window have embeddings, shared by the heads."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, window: int = 4) -> None:
        super().__init__(width, heads, dropout)
        self.window, d = window, width // heads
        self.relative_key = nn.Parameter(torch.randn(2 * window + 1, d) * d**-0.5)
        self.relative_value = nn.Parameter(torch.randn(2 * window + 1, d) * d**-0.5)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        offset = torch.arange(q.shape[2], device=q.device)
        offset = offset - offset[:, None] + self.window  # j - i + window
        near = (offset >= 0) & (offset <= 2 * self.window)
        index = offset.clamp(0, 2 * self.window).expand(*q.shape[:2], -1, -1)
        scores = q @ k.mT + (q @ self.relative_key.mT).gather(3, index) * near
        p = self.weights(scores / math.sqrt(q.shape[-1]), mask)
        # sum_j p_ij e^V_{j-i}: the weights of each offset, then its embedding
        of_offset = torch.zeros_like(q[..., :1].expand(-1, -1, -1, 2 * self.window + 1))
        return p @ v + of_offset.scatter_add(3, index, p * near) @ self.relative_value


class RotaryAttention(Attention):
    """Positions as in Matcha-TTS: half of each head is turned, the rest is left."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = turned(q) @ turned(k).mT / math.sqrt(q.shape[-1])
        return self.weights(scores, mask) @ v


def turned(x: Tensor, base: float = 10_000.0) -> Tensor:
    """The first half of the features at position n turned by n base^(-2 i / d'), d' its width; x (..., T, d)."""
    size = x.shape[-1] // 4  # pairs
    position, pair = (torch.arange(n, device=x.device, dtype=x.dtype) for n in (x.shape[-2], size))
    angle = position[:, None] * base ** -(pair / size)
    cos, sin = angle.cos(), angle.sin()
    a, b, rest = x[..., :size], x[..., size : 2 * size], x[..., 2 * size :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
