"""Sinusoidal time embedding followed by a two-layer perceptron (DDPM, arXiv:2006.11239)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Labels (B,) -> (B, out): [cos, sin] of `dim / 2` frequencies 1 .. 1/max_period, then Linear-SiLU-Linear.

    Args:
        dim: width of the sinusoids (even); out: width of the result;
        scale: labels are multiplied by it (use ~100 for times in [0, 1], 1 for step indices).
    """

    def __init__(self, dim: int = 64, out: int = 64, scale: float = 1.0, max_period: float = 10_000.0) -> None:
        super().__init__()
        self.freqs: Tensor
        if dim % 2:
            raise ValueError(f"the embedding width must be even, not {dim}")
        self.dim, self.out, self.scale, self.max_period = dim, out, scale, max_period
        self.register_buffer(
            "freqs", torch.exp(-math.log(max_period) * torch.arange(dim // 2) / (dim // 2)), persistent=False
        )
        self.mlp = nn.Sequential(nn.Linear(dim, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, t: Tensor) -> Tensor:
        angle = self.scale * t[:, None] * self.freqs.to(t.dtype)
        # The frequencies are no part of a checkpoint and may be of another dtype than its weights.
        return self.mlp(torch.cat([angle.cos(), angle.sin()], 1).to(next(self.mlp.parameters()).dtype))


class Embeddings(TimeEmbedding):
    """The embedding of the time plus those of further scalar conditions, such as the guidance scale "w" or the end "s" of a jump.

    Each further one starts at 0, so that a network that gets it beside a teacher's weights is the teacher.

    Args:
        scalars: name -> scale of its values, as `scale` of the time.
    """

    def __init__(
        self,
        dim: int = 64,
        out: int = 64,
        scale: float = 1.0,
        scalars: Mapping[str, float] | None = None,
        max_period: float = 10_000.0,
    ) -> None:
        super().__init__(dim, out, scale, max_period)
        self.scalars = dict(scalars or {})
        self.further = nn.ModuleDict({name: TimeEmbedding(dim, out, k, max_period) for name, k in self.scalars.items()})
        for embedding in self.further.values():
            assert isinstance(embedding, TimeEmbedding)
            last = embedding.mlp[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, t: Tensor, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """t: (B,), values: name -> (B,) for every further scalar -> (B, out)."""
        values = values or {}
        if values.keys() != self.scalars.keys():
            raise ValueError(f"the network is told {sorted(values)}, it was built for {sorted(self.scalars)}")
        return sum((self.further[k](v) for k, v in values.items()), super().forward(t))
