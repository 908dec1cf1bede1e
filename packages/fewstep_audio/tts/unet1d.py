"""The decoder of Matcha-TTS (arXiv:2309.03199): a U-Net over time with transformer blocks.

Departures from the public code, for results that do not depend on padding: group normalisation looks at valid frames alone, and
attention leaves the padding out (the public code adds the 0/1 mask to the logits, so that padding is attended to).

shapes: x, mu (B, bands, T);  t (B,);  mask (B, 1, T);  speaker (B, speaker_width)
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import mish, pad

from fewstep.nets.embedding import Embeddings
from fewstep_audio.tts.norms import MaskedGroupNorm
from fewstep_audio.tts.residual1d import beside

GROUPS = 8


class Block(nn.Module):
    """mish(norm(conv3(x)))."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(cin, cout, 3, padding=1), MaskedGroupNorm(GROUPS, cout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return mish(self.norm(self.conv(x * mask), mask)) * mask


class ResBlock(nn.Module):
    """block(block(x) + linear(mish(emb))) + conv1(x)."""

    def __init__(self, cin: int, cout: int, embed: int) -> None:
        super().__init__()
        self.shift, self.block1, self.block2 = nn.Linear(embed, cout), Block(cin, cout), Block(cout, cout)
        self.skip = nn.Conv1d(cin, cout, 1)

    def forward(self, x: Tensor, emb: Tensor, mask: Tensor) -> Tensor:
        h = self.block1(x, mask) + self.shift(mish(emb))[:, :, None]
        return self.block2(h, mask) + self.skip(x * mask)


class SnakeBeta(nn.Module):
    """z + sin^2(e^alpha z)/e^beta of z = W x (arXiv:2006.08195 with a magnitude of its own), alpha and beta per channel, 0 at first."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cin, cout)
        self.alpha, self.beta = nn.Parameter(torch.zeros(cout)), nn.Parameter(torch.zeros(cout))

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        return z + (z * self.alpha.exp()).sin().square() / (self.beta.exp() + 1e-9)


class Transformer(nn.Module):
    """h + attention(norm(h)), h + W snake(norm(h)), over the frames."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * inner, bias=False), nn.Linear(inner, width)
        self.snake, self.back, self.drop = SnakeBeta(width, 4 * width), nn.Linear(4 * width, width), nn.Dropout(dropout)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """h: (B, C, T)."""
        h = h.mT
        q, k, v = self.qkv(self.norm1(h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(mask[:, None] == 0, -math.inf)
        h = h + self.drop(self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
        return (h + self.back(self.drop(self.snake(self.norm2(h))))).mT


class Level(nn.Module):
    """A residual block and transformers."""

    def __init__(
        self, cin: int, cout: int, embed: int, transformers: int, heads: int, size: int, dropout: float
    ) -> None:
        super().__init__()
        self.block = ResBlock(cin, cout, embed)
        self.transformers = nn.ModuleList(Transformer(cout, heads, size, dropout) for _ in range(transformers))

    def forward(self, x: Tensor, emb: Tensor, mask: Tensor) -> Tensor:
        h = self.block(x, emb, mask)
        for transformer in self.transformers:
            h = transformer(h, mask)
        return h


class UNet1d(nn.Module):
    """net(x, t, mu, mask, speaker, further scalars by name) -> (B, bands, T), 0 in the padding.

    Args:
        bands: of the mel spectrogram.
        widths: of the levels, at 1, 1/2, ... of the frames; multiples of 8.
        transformers: after each residual block; middle: blocks at the coarsest level.
        heads, head_width: of attention.
        speaker_width: of the speaker embedding; 0: none. Even, as the sinusoids of the time are as wide as the input.
        dropout: of attention and feed-forward parts.
        time_scale: the time label is multiplied by it; 1000 in the public code.
        scalars: further scalar conditions, name -> scale.
    """

    def __init__(
        self,
        bands: int = 80,
        widths: Sequence[int] = (256, 256),
        transformers: int = 1,
        middle: int = 2,
        heads: int = 2,
        head_width: int = 64,
        speaker_width: int = 0,
        dropout: float = 0.05,
        time_scale: float = 1000.0,
        scalars: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.bands, self.widths, self.transformers, self.middle = bands, tuple(widths), transformers, middle
        self.heads, self.head_width, self.speaker_width, self.dropout = heads, head_width, speaker_width, dropout
        self.time_scale, self.scalars = time_scale, dict(scalars or {})
        seen, embed = 2 * bands + speaker_width, 4 * widths[0]

        def level(cin: int, cout: int) -> Level:
            return Level(cin, cout, embed, transformers, heads, head_width, dropout)

        self.time = Embeddings(seen, embed, time_scale, scalars)
        self.down = nn.ModuleList(level(cin, cout) for cin, cout in pairwise([seen, *widths]))
        self.shrink = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.between = nn.Conv1d(widths[-1], widths[-1], 3, padding=1)
        self.mid = nn.ModuleList(level(widths[-1], widths[-1]) for _ in range(middle))
        sizes = list(pairwise([*reversed(widths), widths[0]]))
        self.up = nn.ModuleList(level(2 * cin, cout) for cin, cout in sizes)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(w, w, 4, stride=2, padding=1) for _, w in sizes[:-1])
        self.after = nn.Conv1d(widths[0], widths[0], 3, padding=1)
        self.block, self.last = Block(widths[0], widths[0]), nn.Conv1d(widths[0], bands, 1)

    @property
    def stride(self) -> int:
        """Frames are padded to a multiple of it and cut again."""
        return 2 ** (len(self.widths) - 1)

    def forward(
        self, x: Tensor, t: Tensor, mu: Tensor, mask: Tensor, speaker: Tensor | None = None, **scalars: Tensor
    ) -> Tensor:
        frames, margin = x.shape[2], (0, -x.shape[2] % self.stride)
        emb = self.time(t, scalars)
        h, masks, kept = pad(beside(x, mu, speaker), margin), [pad(mask, margin)], []
        for i, level in enumerate(self.down):
            if i:
                h = self.shrink[i - 1](h * masks[-1])
                masks.append(masks[-1][..., ::2])
            h = level(h, emb, masks[-1])
            kept.append(h)
        h = self.between(h * masks[-1])
        for level in self.mid:
            h = level(h, emb, masks[-1])
        for i, level in enumerate(self.up):
            inside = masks.pop()
            h = level(torch.cat([h, kept.pop()], 1), emb, inside) * inside
            h = self.grow[i](h) if masks else self.after(h)
        return (self.last(self.block(h, inside)) * inside)[..., :frames]
