"""A small U-Net for images: FiLM residual blocks with group normalisation, self-attention at chosen levels (ADM, arXiv:2105.05233).

Every block and the last layer end in a zero-initialised convolution: an untrained network outputs 0.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import gcd
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu

from fewstep.nets.embedding import Embeddings
from fewstep.nets.latent import Mapping as LatentMapping

GROUPS = 8
M = TypeVar("M", bound=nn.Module)


def zero(layer: M) -> M:
    """The layer with all its parameters 0."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


class Attention(nn.Module):
    """h + conv(attention over the pixels of norm(h)), heads of 32, 16 or 8 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // gcd(width, 32)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv, self.last = nn.Conv2d(width, 3 * width, 1), zero(nn.Conv2d(width, width, 1))

    def forward(self, h: Tensor) -> Tensor:
        b, c, height, width = h.shape
        qkv = self.qkv(self.norm(h)).reshape(b, 3, self.heads, c // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        return h + self.last(scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, height, width))


class Block(nn.Module):
    """skip(h) + conv(dropout(silu(film(norm(conv(silu(norm(h)))))))), then attention where asked for."""

    def __init__(self, cin: int, cout: int, embed: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, cin), nn.GroupNorm(GROUPS, cout)
        self.conv1, self.conv2 = nn.Conv2d(cin, cout, 3, padding=1), zero(nn.Conv2d(cout, cout, 3, padding=1))
        self.film, self.dropout = nn.Linear(embed, 2 * cout), nn.Dropout(dropout)
        self.skip = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)
        self.attention = Attention(cout) if attention else nn.Identity()

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        gain, shift = self.film(emb)[:, :, None, None].chunk(2, 1)
        inner = self.norm2(self.conv1(silu(self.norm1(h)))) * (1 + gain) + shift
        return self.attention(self.skip(h) + self.conv2(self.dropout(silu(inner))))


class UNet(nn.Module):
    """net(x: (B, C, H, W), t: (B,), label: (B,) of integers, scalars by name: (B,)) -> (B, C, H, W), H and W multiples of `stride`.

    Args:
        channels: C.
        width, mults: level i has width * mults[i] channels at 1/2^i of the resolution; all of them multiples of 8.
        blocks: residual blocks per level, on the way down and again on the way up.
        attention: levels whose blocks are followed by self-attention (0 is the full resolution); the middle block is of the last level.
        classes: labels are 0 .. classes - 1, and `classes` itself is the null label of the unconditional branch; 0: no labels.
        scalars: further scalar conditions, name -> scale; each is then a keyword argument.
        dropout: inside the blocks.
        time_scale: the time label is multiplied by it (100 for times in [0, 1], 1 for step indices).
        latent: elements of a latent that is drawn at every call unless it is the condition `z`, (B, latent); see latent.py. 0: none.
    """

    # For narrower networks (prune.py): widths come in multiples of UNIT, and these weights have parts that are cut each for itself.
    UNIT: ClassVar[int] = GROUPS
    PARTS: ClassVar[Mapping[str, tuple[int, ...]]] = {
        r"\.film\.": (2,),
        r"\.qkv\.": (3,),
        r"^up\..*\.norm1\.": (2,),
        r"^up\..*\.(conv1|skip)\.weight": (1, 2),
    }

    def __init__(
        self,
        channels: int = 3,
        width: int = 48,
        mults: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        classes: int = 0,
        scalars: Mapping[str, float] | None = None,
        dropout: float = 0.0,
        time_scale: float = 100.0,
        latent: int = 0,
    ) -> None:
        super().__init__()
        widths, levels = [width * m for m in mults], range(len(mults))
        if not widths or any(w % GROUPS or w < 1 for w in widths) or blocks < 1:
            raise ValueError(
                f"a U-Net needs blocks >= 1 and widths in multiples of {GROUPS}, got {blocks} and {widths}"
            )
        if not set(attention) <= set(levels):
            raise ValueError(f"attention is at levels {list(attention)}; there are levels 0 to {len(widths) - 1}")
        self.channels, self.width, self.mults, self.blocks = channels, width, tuple(mults), blocks
        self.attention, self.classes, self.scalars = tuple(attention), classes, dict(scalars or {})
        self.dropout, self.time_scale, self.latent = dropout, time_scale, latent
        embed = 2 * width
        self.time = Embeddings(64, embed, time_scale, scalars)
        self.labels = nn.Embedding(classes + 1, embed) if classes else None
        self.first = nn.Conv2d(channels, width, 3, padding=1)

        def level(i: int, *sizes: tuple[int, int]) -> nn.ModuleList:
            return nn.ModuleList(Block(cin, cout, embed, dropout, i in attention) for cin, cout in sizes)

        same = [(w, w) for w in widths]
        enter = list(zip([width, *widths], widths, strict=False))
        self.down = nn.ModuleList(level(i, enter[i], *[same[i]] * (blocks - 1)) for i in levels)
        self.shrink = nn.ModuleList(nn.Conv2d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.middle = level(levels[-1], same[-1])
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(level(i, *[(2 * widths[i], widths[i])] * blocks) for i in levels)
        self.norm, self.last = nn.GroupNorm(GROUPS, widths[0]), zero(nn.Conv2d(widths[0], channels, 3, padding=1))
        self.mapping = LatentMapping(latent, embed) if latent else None

    @property
    def stride(self) -> int:
        """Heights and widths are multiples of it."""
        return 2 ** (len(self.mults) - 1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, **scalars: Tensor) -> Tensor:
        """See the class.

        Raises:
            ValueError: a label is given or lacks against `classes`, or the size is no multiple of `stride`.
        """
        if x.shape[-1] % self.stride or x.shape[-2] % self.stride:
            raise ValueError(f"the image is {tuple(x.shape[-2:])}; its sides must be multiples of {self.stride}")
        z = None if self.mapping is None else self.mapping(x, scalars.pop("z", None))
        emb = self._embed(t, label, scalars)
        emb = silu(emb if z is None else emb + z)
        # Not channels_last: no faster here on a CPU core, and torch's forward mode has no rule for group normalisation in it.
        h, kept = self.first(x.contiguous()), []
        for i, level in enumerate(self.down):
            h = self.shrink[i - 1](h) if i else h
            for block in level.children():
                h = block(h, emb)
                kept.append(h)
        h = self._lowest(h, emb)
        for i, level in reversed([*enumerate(self.up)]):
            for block in level.children():
                h = block(torch.cat([h, kept.pop()], 1), emb)
            h = self.grow[i - 1](interpolate(h, scale_factor=2.0, mode="nearest")) if i else h
        return self.last(silu(self.norm(h)))

    def _lowest(self, h: Tensor, emb: Tensor) -> Tensor:
        for block in self.middle:
            h = block(h, emb)
        return h

    def _embed(self, t: Tensor, label: Tensor | None, scalars: Mapping[str, Tensor]) -> Tensor:
        if (label is None) != (self.labels is None):
            raise ValueError(
                f"the network has {self.classes} classes and is given {'no' if label is None else 'a'} label"
            )
        emb = self.time(t, scalars)
        return emb if self.labels is None else emb + self.labels(label)
