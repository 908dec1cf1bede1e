"""Wan made causal: blocks of frames, each given those before it, whose keys and values are kept (CausVid, arXiv:2412.07772).

    generation  net(x_k, t, cache=, place=)     one block after `place` finished ones
    training    net(x, t, past=)                all blocks at once, each given the clean ones before it in `past`
    cache       (B, layers, 2, tokens, D)       keys without rotation and values of the finished blocks in sight; the sink is never dropped

Finished blocks are shown at the time `clean`. What block j leaves to later ones depends on what it saw itself, so a cached run and the
training's call agree also where the window has moved on.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.nets.adapter import Wrapper
from fewstep_video.nets.block_attention import BlockAttention, Positions, Rotations, Sight, View, Window
from fewstep_video.nets.wan import Wan


class CausalWan(Wrapper):
    """net(x (B, C, F, H, W), t (B,), past | cache and place, **conditions) -> (B, C, F, H, W).

    Args:
        net: whose attention is replaced, and whose weights stay as they are: a bidirectional teacher's will do to begin with.
        size: frames of a block; window: frames before it that it sees, of which `sink` are the first of the sequence.
        positions: see block_attention.py. Checkpoints that were trained with absolute ones need those.
        clean: the time that finished blocks are shown at.
    Raises:
        ValueError: sizes that are no multiples of each other or of the model's patches.
    """

    def __init__(
        self,
        net: Wan,
        size: int = 2,
        window: int = 12,
        sink: int = 2,
        positions: Positions = "rebased",
        clean: float = 0.0,
    ) -> None:
        super().__init__()
        if size % net.patch[0] or window % size or sink % size:
            raise ValueError(
                f"a block is whole patches of {net.patch[0]} frames, window and sink are whole blocks; "
                f"got size {size}, window {window}, sink {sink}"
            )
        self.net, self.size, self.window, self.sink = net, size, window, sink
        self.positions, self.clean = positions, clean
        self.reach = Window(window // size, sink // size, positions)
        model: Any = net.model
        for layer, block in enumerate(model.blocks):
            block.attn1.set_processor(BlockAttention(layer))
        model.rope = Rotations(model.rope, size)

    @property
    def rotations(self) -> Rotations:
        """What stands in the model where its rotary table is made."""
        return cast(Any, self.net).model.rope

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        past: Tensor | None = None,
        cache: Tensor | None = None,
        place: Tensor | None = None,
        **cond: Any,
    ) -> Tensor:
        """past: finished frames (B, C, F', H, W), all that are before the one block x, or those of every block of x; cache, place: of `remembered`.

        Raises:
            ValueError: frames that are no such blocks.
        """
        if cache is not None:
            return self.seeing(x, t, Sight([self.after(cache, place, x)], cache), cond)
        past = x[:, :, :0] if past is None else past
        done, blocks = past.shape[2] // self.size, x.shape[2] // self.size
        if past.shape[2] % self.size or x.shape[2] % self.size or not (blocks == 1 or blocks == done):
            raise ValueError(
                f"{x.shape[2]} frames after {past.shape[2]} are neither one block of {self.size} after others nor blocks beside their own"
            )
        of_past = [((*self.reach.seen(k), k), k) for k in range(done)]
        own = [((*self.reach.seen(k), done + n), k) for n, k in enumerate(range(blocks) if blocks > 1 else (done,))]
        views = [View(sees, self.rotations.table(x, self.reach.at(k))) for sees, k in of_past + own]
        out = self.seeing(torch.cat([past, x], 2), self.times(x, t, done, blocks), Sight(views), cond)
        return out[:, :, past.shape[2] :]

    def times(self, x: Tensor, t: Tensor, done: int, blocks: int) -> Tensor:
        """t (B,), or (B, tokens) where there are finished blocks."""
        if not done:
            return t
        tokens = self.tokens(x)
        return torch.cat(
            [torch.full_like(t, self.clean)[:, None].expand(-1, done * tokens), t[:, None].expand(-1, blocks * tokens)],
            1,
        )

    def seeing(self, x: Tensor, t: Tensor, sight: Sight, cond: Mapping[str, Any]) -> Tensor:
        """One call of the network with this sight."""
        self.rotations.sight = sight
        return self.net(x, t, **cond)

    def tokens(self, x: Tensor) -> int:
        """Of a block of frames like x: (B, C, F, H, W)."""
        frames, height, width = cast(Wan, self.net).patch
        return self.size // frames * (x.shape[3] // height) * (x.shape[4] // width)

    def after(self, cache: Tensor, place: Tensor | None, x: Tensor) -> View:
        """What the one block x sees after the cached ones.

        Raises:
            ValueError: another number of frames than a block's.
        """
        if x.shape[2] != self.size:
            raise ValueError(f"with a cache the network takes one block of {self.size} frames, not {x.shape[2]}")
        held = cache.shape[3] // self.tokens(x)
        if self.positions == "absolute":
            assert place is not None
            held = int(place[0])
        return View((0,), self.rotations.table(x, self.reach.at(held)))

    def empty(self, x: Tensor) -> dict[str, Tensor]:
        """{"cache", "place"} before the first block, for frames like x: (B, C, F, H, W)."""
        config = cast(Any, self.net).model.config
        width = config.num_attention_heads * config.attention_head_dim
        cache = x.new_zeros(len(x), config.num_layers, 2, 0, width)
        return {"cache": cache, "place": torch.zeros(len(x), dtype=torch.long, device=x.device)}

    @torch.no_grad()
    def remembered(self, block: Tensor, cache: Tensor, place: Tensor, **cond: Any) -> dict[str, Tensor]:
        """{"cache", "place"} after this finished block (B, C, size, H, W); where the window is full the oldest block behind the sink is dropped."""
        sight = Sight([self.after(cache, place, block)], cache, keeps=True)
        self.seeing(block, torch.full((len(block),), self.clean, device=block.device), sight, cond)
        new, tokens = torch.stack(sight.kept, 1), self.tokens(block)
        if cache.shape[3] == self.reach.length * tokens:
            sink = self.reach.sink * tokens
            cache = torch.cat([cache[:, :, :, :sink], cache[:, :, :, sink + tokens :]], 3)
        return {"cache": torch.cat([cache, new], 3), "place": place + 1}
