"""NCSN++ for complex spectrograms (Score-SDE, arXiv:2011.13456; SGMSE+, arXiv:2208.05830).

    h = conv(x),  per level:  blocks, BigGAN block that halves,  h <- h + conv1x1(input pyramid)
    middle:                   block, attention, block
    per level back:           blocks on [h, skip],  output pyramid <- up(output pyramid) + conv(silu(norm(h))),  block that doubles
    out = conv1x1(output pyramid / t)

Every sum of two branches is divided by sqrt 2, resampling is by [1, 3, 3, 1] (fir.py), and the time enters as Fourier features of ln t.
Parameters as in the published code (the fixed frequencies counted): 65,590,822 of SGMSE+ with the defaults; StoRM's light network
(arXiv:2212.11851) is `mults=(1, 2, 2, 2), blocks=1, attention=()` with 27.8 million.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from fewstep_audio.enhancement.conditions import beside
from fewstep_audio.enhancement.fir import down, up

Resample = Callable[[Tensor], Tensor]


def variance_scaled(layer: nn.Conv2d | nn.Linear, scale: float = 1.0) -> nn.Conv2d | nn.Linear:
    """The layer with weights uniform of variance scale/((fan_in + fan_out)/2) and bias 0; scale 0 means nearly 0 (1e-10)."""
    nn.init.xavier_uniform_(layer.weight, math.sqrt(scale or 1e-10))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(cin: int, cout: int, kernel: int = 3, scale: float = 1.0) -> nn.Module:
    return variance_scaled(nn.Conv2d(cin, cout, kernel, padding=kernel // 2), scale)


def norm(width: int) -> nn.GroupNorm:
    """Groups of 4 channels, at most 32 groups."""
    groups = min(width // 4, 32)
    if groups < 1 or width % groups:
        raise ValueError(f"{width} channels cannot be normalised in groups; allowed: multiples of 4, from 128 on of 32")
    return nn.GroupNorm(groups, width, eps=1e-6)


class FourierTime(nn.Module):
    """t: (B,) -> (B, 4 width): [sin, cos] of 2 pi w ln t with fixed w ~ N(0, 16^2), then Linear-SiLU-Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", 16.0 * torch.randn(width))
        self.first = variance_scaled(nn.Linear(2 * width, 4 * width))
        self.last = variance_scaled(nn.Linear(4 * width, 4 * width))

    def forward(self, t: Tensor) -> Tensor:
        angle = 2 * math.pi * t.log()[:, None] * self.freqs.to(t.dtype)
        features = torch.cat([angle.sin(), angle.cos()], 1).to(self.first.weight.dtype)  # pyright: ignore[reportArgumentType]
        return self.last(silu(self.first(features)))


class Attention(nn.Module):
    """(h + out(attention over all bins and frames of norm(h)))/sqrt 2, one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = norm(width), conv(width, 3 * width, 1, 0.1), conv(width, width, 1, 0.0)

    def forward(self, h: Tensor) -> Tensor:
        b, c, *size = h.shape
        q, k, v = self.qkv(self.norm(h)).reshape(b, 3, c, -1).transpose(-1, -2).unbind(1)
        seen = scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, *size)
        return (h + self.out(seen)) / math.sqrt(2)


class Block(nn.Module):
    """BigGAN residual block: (skip(r(h)) + conv(dropout(silu(norm(conv(r(silu(norm(h)))) + time)))))/sqrt 2.

    r: resampling by 2, or none; embed: width of the time embedding, 0 without time.
    """

    def __init__(self, cin: int, cout: int, embed: int, dropout: float, resample: Resample | None = None) -> None:
        super().__init__()
        self.resample = resample
        self.norm1, self.conv1 = norm(cin), conv(cin, cout)
        self.time = variance_scaled(nn.Linear(embed, cout)) if embed else None
        self.norm2, self.dropout, self.conv2 = norm(cout), nn.Dropout(dropout), conv(cout, cout, 3, 0.0)
        self.skip = nn.Identity() if cin == cout and resample is None else conv(cin, cout, 1)

    def forward(self, h: Tensor, emb: Tensor | None) -> Tensor:
        inner = silu(self.norm1(h))
        if self.resample is not None:
            inner, h = self.resample(inner), self.resample(h)
        inner = self.conv1(inner)
        if self.time is not None and emb is not None:
            inner = inner + self.time(silu(emb))[:, :, None, None]
        inner = self.conv2(self.dropout(silu(self.norm2(inner))))
        return (self.skip(h) + inner) / math.sqrt(2)


class ToPyramid(nn.Module):
    """conv(silu(norm(h))): what a level adds to the output pyramid, nearly 0 at first."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = norm(width), conv(width, channels, 3, 0.0)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(silu(self.norm(h)))


class NCSNpp(nn.Module):
    """net(x: (B, 2, F, T), t: (B,) positive, conditions by name: (B, 2, F, T)) -> (B, 2, F, T); F and T multiples of `stride`.

    Args:
        conditions: names of the conditions that it sees beside x, in this order; others are not looked at.
        width, mults: level i has width * mults[i] channels at 1/2^i of the resolution.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: levels with self-attention (4: 16 of 256 bins); the middle always has it.
        dropout: inside the blocks.
        timed: t is embedded; without it (predictive networks) t is not looked at.
        over_time: the output pyramid is divided by t, as for scores; a student that is only evaluated at t = 1 sees a constant.
    """

    def __init__(
        self,
        conditions: Sequence[str] = ("noisy",),
        width: int = 128,
        mults: Sequence[int] = (1, 1, 2, 2, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (4,),
        dropout: float = 0.0,
        timed: bool = True,
        over_time: bool = True,
    ) -> None:
        super().__init__()
        levels, widths = range(len(mults)), [width * m for m in mults]
        if not widths or blocks < 1:
            raise ValueError(f"NCSN++ needs a level and blocks >= 1, got widths {widths} and {blocks} blocks")
        if not set(attention) <= set(levels):
            raise ValueError(f"attention is at levels {list(attention)}; there are levels 0 to {len(widths) - 1}")
        self.conditions, self.width, self.mults, self.blocks = tuple(conditions), width, tuple(mults), blocks
        self.attention, self.dropout, self.timed, self.over_time = tuple(attention), dropout, timed, over_time
        channels, embed = 2 * (1 + len(self.conditions)), 4 * width if timed else 0

        def block(cin: int, cout: int, resample: Resample | None = None) -> Block:
            return Block(cin, cout, embed, dropout, resample)

        self.time = FourierTime(width) if timed else None
        self.first = conv(channels, width)
        self.down, self.shrink, self.from_pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips, h = [width], width
        for i, w in enumerate(widths):
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(nn.ModuleList([block(h, w), Attention(w) if i in attention else nn.Identity()]))
                h = w
                skips.append(h)
            self.down.append(level)
            if i < len(widths) - 1:
                self.shrink.append(block(h, h, down))
                self.from_pyramid.append(conv(channels, h, 1))
                skips.append(h)
        self.middle = nn.ModuleList([block(h, h), Attention(h), block(h, h)])
        self.up, self.attend, self.to_pyramid, self.grow = (nn.ModuleList() for _ in range(4))
        for i, w in reversed([*enumerate(widths)]):
            self.up.append(nn.ModuleList())
            for _ in range(blocks + 1):
                self.up[-1].append(block(h + skips.pop(), w))  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
                h = w
            self.attend.append(Attention(h) if i in attention else nn.Identity())
            self.to_pyramid.append(ToPyramid(h, channels))
            if i:
                self.grow.append(block(h, h, up))
        self.last = nn.Conv2d(channels, 2, 1)

    @property
    def stride(self) -> int:
        """F and T are multiples of it."""
        return 2 ** (len(self.mults) - 1)

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """See the class.

        Raises:
            ValueError: a condition lacks, or the size is no multiple of `stride`.
        """
        x = beside(x, self.conditions, conditions)
        if x.shape[-1] % self.stride or x.shape[-2] % self.stride:
            raise ValueError(
                f"the spectrogram is {tuple(x.shape[-2:])}; bins and frames must be multiples of {self.stride}"
            )
        emb = None if self.time is None else self.time(t)
        h = self._back(*self._forth(x, emb), emb)
        if self.over_time:
            h = h / t.to(h.dtype)[:, None, None, None]
        return self.last(h)

    def _forth(self, x: Tensor, emb: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The features at the bottom and those kept on the way down."""
        h, kept = self.first(x), []
        kept.append(h)
        for i, level in enumerate(self.down):
            for block, attend in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = attend(block(h, emb))
                kept.append(h)
            if i < len(self.shrink):
                x = down(x)
                h = self.shrink[i](h, emb) + self.from_pyramid[i](x)
                kept.append(h)
        block, attend, last = self.middle
        return last(attend(block(h, emb)), emb), kept

    def _back(self, h: Tensor, kept: list[Tensor], emb: Tensor | None) -> Tensor:
        """The output pyramid at full resolution."""
        pyramid = None
        for i, level in enumerate(self.up):
            for block in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(torch.cat([h, kept.pop()], 1), emb)
            h = self.attend[i](h)
            own = self.to_pyramid[i](h)
            pyramid = own if pyramid is None else up(pyramid) + own
            if i < len(self.grow):
                h = self.grow[i](h, emb)
        assert pyramid is not None
        return pyramid
