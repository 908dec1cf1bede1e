"""Self-attention of Wan's transformer over blocks of frames: what each block sees, and the rotary positions it sees it at.

    block k sees       the sink (the first blocks), the last blocks before it, `window` frames in all, and itself
    rebased            they have positions 0, 1, 2, ... in that order: only what is in sight counts (Ca2-VDM, arXiv:2411.16375)
    absolute           they have the positions of their frames in the sequence, up to the length of the model's table

Keys are kept without their rotation, so that both are a matter of reading. Where nothing has left the window yet the two are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

Positions = Literal["rebased", "absolute"]
# (cos, sin), each (tokens, 1, D).
Table = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Window:
    """How far blocks look back, counted in blocks.

    Raises:
        ValueError: unless 0 <= sink < length.
    """

    length: int
    sink: int
    positions: Positions = "rebased"

    def __post_init__(self) -> None:
        if not 0 <= self.sink < self.length:
            raise ValueError(
                f"a window of {self.length} blocks has a sink of 0 to {self.length - 1} of them, not {self.sink}"
            )

    def seen(self, k: int) -> list[int]:
        """The blocks before block k that it sees, oldest first."""
        return [*range(k)] if k <= self.length else [*range(self.sink), *range(k - self.length + self.sink, k)]

    def at(self, k: int) -> tuple[int, ...]:
        """Their positions and its own."""
        seen = self.seen(k)
        return (*range(len(seen) + 1),) if self.positions == "rebased" else (*seen, k)


class View(NamedTuple):
    """Of one block of a call: the numbers of the call's blocks that it sees, itself last, and the rotations of all it sees, the cache first."""

    sees: tuple[int, ...]
    table: Table


@dataclass(eq=False)
class Sight:
    """What one call of the network sees, handed to every layer in place of Wan's rotary table.

    Args:
        views: one for each block of the call.
        cache: (B, layers, 2, tokens, D) keys and values of what came before the call.
        keeps: whether those of the call's own tokens are put into `kept`, layer by layer: (B, 2, tokens, D).
    """

    views: Sequence[View]
    cache: Tensor | None = None
    keeps: bool = False
    kept: list[Tensor] = field(default_factory=list)


class BlockAttention:
    """A processor of diffusers' WanAttention, of the self-attention of one layer; `rotary_emb` is the call's `Sight`."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Sight | None = None,
    ) -> Tensor:
        """hidden_states: (B, blocks tokens, D) -> the same."""
        assert rotary_emb is not None
        q, k, v = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states)), attn.to_v(hidden_states)
        if rotary_emb.keeps:
            rotary_emb.kept.append(torch.stack([k, v], 1))
        out = torch.cat(self.blocks(rotary_emb, q, k, v, attn.heads), 1)
        return attn.to_out[1](attn.to_out[0](out))

    def blocks(self, sight: Sight, q: Tensor, k: Tensor, v: Tensor, heads: int) -> list[Tensor]:
        """The result of every block of the call."""
        queries, *parts = (x.chunk(len(sight.views), 1) for x in (q, k, v))
        past = () if sight.cache is None else sight.cache[:, self.layer].unbind(1)
        found = []
        for own, (sees, table) in zip(queries, sight.views, strict=True):
            keys, values = (torch.cat([*past[i : i + 1], *(part[j] for j in sees)], 1) for i, part in enumerate(parts))
            last = (table[0][-own.shape[1] :], table[1][-own.shape[1] :])
            mixed = scaled_dot_product_attention(
                rotated(own, last, heads).transpose(1, 2),
                rotated(keys, table, heads).transpose(1, 2),
                values.unflatten(2, (heads, -1)).transpose(1, 2),
            )
            found.append(mixed.transpose(1, 2).flatten(2))
        return found


def rotated(x: Tensor, table: Table, heads: int) -> Tensor:
    """x: (B, tokens, D) -> (B, tokens, heads, D / heads), pairs of channels turned."""
    a, b = x.unflatten(2, (heads, -1, 2)).unbind(-1)
    c, s = table[0][..., 0::2], table[1][..., 1::2]
    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)


class Rotations(nn.Module):
    """Stands where Wan makes its rotary table: gives the blocks the sight of the call instead, and the tables that it is made with.

    Args:
        rope: Wan's own; size: frames of a block.
    """

    def __init__(self, rope: nn.Module, size: int) -> None:
        super().__init__()
        self.rope, self.size = rope, size
        self.sight: Sight | None = None
        self._held: dict[tuple[Any, ...], Table] = {}

    def forward(self, x: Tensor) -> Sight:
        """The sight that was set for this call, which is then forgotten."""
        sight, self.sight = self.sight, None
        if sight is None:
            raise RuntimeError("a causal network is called through CausalWan, which says what is seen")
        return sight

    @property
    def longest(self) -> int:
        """Frames that the model has positions for."""
        return int(self.rope.max_seq_len) * int(self.rope.patch_size[0])  # pyright: ignore

    @torch.inference_mode(False)  # what is remembered must serve training too
    def table(self, x: Tensor, at: Sequence[int]) -> Table:
        """Of blocks like x: (B, C, F, H, W) at these positions.

        Raises:
            ValueError: positions that the model does not have.
        """
        if max(at) * self.size >= self.longest:
            raise ValueError(
                f"the model has positions for {self.longest} frames, and frame {max(at) * self.size} is asked for; rebased positions have no end"
            )
        key = (*at, *x.shape[3:], x.dtype, x.device)
        if key not in self._held:
            if len(self._held) >= 64:
                self._held.clear()
            self._held[key] = self._table(x, at)
        return self._held[key]

    def _table(self, x: Tensor, at: Sequence[int]) -> Table:
        patch, split = self.rope.patch_size, int(self.rope.t_dim)  # pyright: ignore
        empty = torch.empty(1, device=x.device)
        frames = self.rope(empty.expand(1, 1, (max(at) + 1) * self.size, *patch[1:]))  # pyright: ignore
        places = self.rope(empty.expand(1, 1, patch[0], *x.shape[3:]))  # pyright: ignore
        each = torch.arange(self.size // patch[0], device=x.device)  # pyright: ignore
        index = (torch.tensor([*at], device=x.device)[:, None] * len(each) + each).flatten()
        found = []
        for of_frames, of_places in zip(frames, places, strict=True):
            time, place = of_frames[0, index, :, :split], of_places[0, :, :, split:]
            both = [time[:, None].expand(-1, len(place), -1, -1), place[None].expand(len(time), -1, -1, -1)]
            found.append(torch.cat(both, -1).flatten(0, 1).to(x.dtype))
        return found[0], found[1]
