"""The decoder of Grad-TTS (arXiv:2105.06337) and CoMoSpeech (arXiv:2305.06908): a U-Net over the mel as an image, [x, mu] as channels.

Departures from the public code, for results that do not depend on padding: group normalisation and linear attention look at valid
frames alone. The sinusoids of the time are the core's.

shapes: x, mu (B, bands, T);  t (B,);  mask (B, 1, T), inside (B, 1, 1, T);  speaker (B, speaker_width)
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import mish, pad

from fewstep.nets.embedding import Embeddings
from fewstep_audio.tts.norms import MaskedGroupNorm

GROUPS, HEADS, HEAD_WIDTH = 8, 4, 32


class Block(nn.Module):
    """mish(norm(conv3(x)))."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(cin, cout, 3, padding=1), MaskedGroupNorm(GROUPS, cout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return mish(self.norm(self.conv(x * mask), mask)) * mask


class ResBlock(nn.Module):
    """block(block(x) + linear(mish(emb))) + skip(x)."""

    def __init__(self, cin: int, cout: int, embed: int) -> None:
        super().__init__()
        self.shift, self.block1, self.block2 = nn.Linear(embed, cout), Block(cin, cout), Block(cout, cout)
        self.skip = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor, emb: Tensor, mask: Tensor) -> Tensor:
        h = self.block1(x, mask) + self.shift(mish(emb))[:, :, None, None]
        return self.block2(h, mask) + self.skip(x * mask)


class LinearAttention(nn.Module):
    """x + g out(sum_n softmax_n(k) v^T q), g = 0 at first (arXiv:2006.16236, arXiv:2003.04887); keys over all valid pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = HEADS * HEAD_WIDTH
        self.qkv, self.out = nn.Conv2d(width, 3 * inner, 1, bias=False), nn.Conv2d(inner, width, 1)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x * mask).flatten(2).reshape(len(x), 3, HEADS, HEAD_WIDTH, -1).unbind(1)
        inside = mask.expand(-1, -1, x.shape[2], -1).flatten(2)[:, None]
        k = k.masked_fill(inside == 0, -math.inf).softmax(-1)
        seen = (k @ v.mT).mT @ q  # (B, heads, d, pixels)
        return x + self.gate * self.out(seen.reshape(len(x), -1, *x.shape[2:]))


class MishEmbeddings(Embeddings):
    """Time and further scalars, with the perceptron of Grad-TTS: width -> 4 width -> width."""

    def __init__(self, width: int, scale: float, scalars: Mapping[str, float] | None) -> None:
        super().__init__(width, width, scale, scalars)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))


class Level(nn.Module):
    """Two residual blocks and attention."""

    def __init__(self, cin: int, cout: int, embed: int) -> None:
        super().__init__()
        self.block1, self.block2 = ResBlock(cin, cout, embed), ResBlock(cout, cout, embed)
        self.attention = LinearAttention(cout)

    def forward(self, x: Tensor, emb: Tensor, mask: Tensor) -> Tensor:
        return self.attention(self.block2(self.block1(x, emb, mask), emb, mask), mask)


class UNet2d(nn.Module):
    """net(x, t, mu, mask, speaker, further scalars by name) -> (B, bands, T), 0 in the padding.

    Args:
        bands: of the mel spectrogram, a multiple of 2^(levels - 1).
        width, mults: level i has width * mults[i] channels; 64 and (1, 2, 4) in the papers, 7,634,887 parameters.
        speaker_width: of the speaker embedding, which becomes one more image plane; 0: none.
        time_scale: the time label is multiplied by it; 1000 in the papers.
        scalars: further scalar conditions, name -> scale.
    """

    def __init__(
        self,
        bands: int = 80,
        width: int = 64,
        mults: Sequence[int] = (1, 2, 4),
        speaker_width: int = 0,
        time_scale: float = 1000.0,
        scalars: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.bands, self.width, self.mults, self.speaker_width = bands, width, tuple(mults), speaker_width
        self.time_scale, self.scalars = time_scale, dict(scalars or {})
        if bands % self.stride or width % GROUPS:
            raise ValueError(
                f"bands are a multiple of {self.stride} and the width of {GROUPS}; got {bands} and {width}"
            )
        widths = [width * m for m in mults]
        sizes = list(pairwise([3 if speaker_width else 2, *widths]))
        self.time = MishEmbeddings(width, time_scale, scalars)
        self.plane = (
            nn.Sequential(nn.Linear(speaker_width, 4 * speaker_width), nn.Mish(), nn.Linear(4 * speaker_width, bands))
            if speaker_width
            else None
        )
        self.down = nn.ModuleList(Level(cin, cout, width) for cin, cout in sizes)
        self.shrink = nn.ModuleList(nn.Conv2d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.middle1, self.middle2 = (ResBlock(widths[-1], widths[-1], width) for _ in range(2))
        self.attention = LinearAttention(widths[-1])
        self.up = nn.ModuleList(Level(2 * cout, cin, width) for cin, cout in reversed(sizes[1:]))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(w, w, 4, stride=2, padding=1) for w in reversed(widths[:-1]))
        self.block, self.last = Block(width, width), nn.Conv2d(width, 1, 1)

    @property
    def stride(self) -> int:
        """Of bands and frames; frames are padded to a multiple of it and cut again."""
        return 2 ** (len(self.mults) - 1)

    def forward(
        self, x: Tensor, t: Tensor, mu: Tensor, mask: Tensor, speaker: Tensor | None = None, **scalars: Tensor
    ) -> Tensor:
        frames, margin = x.shape[2], (0, -x.shape[2] % self.stride)
        emb, planes = self.time(t, scalars), [mu, x]
        if speaker is not None and self.plane is not None:
            planes.append(self.plane(speaker)[:, :, None].expand_as(x))
        h, masks, kept = pad(torch.stack(planes, 1), margin), [pad(mask, margin)[:, None]], []
        for i, level in enumerate(self.down):
            if i:
                h = self.shrink[i - 1](h * masks[-1])
                masks.append(masks[-1][..., ::2])
            h = level(h, emb, masks[-1])
            kept.append(h)
        h = self.middle1(h, emb, masks[-1])
        h = self.middle2(self.attention(h, masks[-1]), emb, masks[-1])
        for level, grow in zip(self.up, self.grow, strict=True):
            inside = masks.pop()
            h = grow(level(torch.cat([h, kept.pop()], 1), emb, inside) * inside)
        [inside] = masks
        return (self.last(self.block(h, inside)) * inside)[:, 0, :, :frames]
