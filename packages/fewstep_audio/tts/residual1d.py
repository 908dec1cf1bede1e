"""The decoder for CPUs: dilated residual convolutions over time, the bands of the mel as channels.

    h = conv([x, mu, speaker]);  h = h + conv1(silu(film(norm(conv3_dilated(silu(norm(h)))))));  out = conv(silu(norm(h)))

shapes: x, mu (B, bands, T);  t (B,);  mask (B, 1, T);  speaker (B, speaker_width)
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from fewstep.nets.embedding import Embeddings
from fewstep.nets.unet import zero
from fewstep_audio.tts.norms import MaskedGroupNorm

GROUPS = 8


class Block(nn.Module):
    """A residual block whose norm is moved by the embedding."""

    def __init__(self, width: int, embed: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = MaskedGroupNorm(GROUPS, width), MaskedGroupNorm(GROUPS, width)
        self.conv1 = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = zero(nn.Conv1d(width, width, 3, padding=1))
        self.film, self.dropout = nn.Linear(embed, 2 * width), nn.Dropout(dropout)

    def forward(self, h: Tensor, emb: Tensor, mask: Tensor) -> Tensor:
        gain, shift = self.film(emb)[:, :, None].chunk(2, 1)
        inner = self.norm2(self.conv1(silu(self.norm1(h, mask)) * mask), mask) * (1 + gain) + shift
        return h + self.conv2(self.dropout(silu(inner)) * mask)


class Residual1d(nn.Module):
    """net(x, t, mu, mask, speaker, further scalars by name) -> (B, bands, T); 0 before training, and in the padding always.

    Args:
        bands: of the mel spectrogram.
        width: of the network, a multiple of 8.
        dilations: of the blocks, one each.
        speaker_width: of the speaker embedding; 0: none.
        dropout: inside the blocks.
        time_scale: the time label is multiplied by it (100 for times in [0, 1] and for EDM's log(sigma)/4).
        scalars: further scalar conditions, name -> scale.
    """

    def __init__(
        self,
        bands: int = 80,
        width: int = 128,
        dilations: Sequence[int] = (1, 2, 4, 8, 1, 2, 4, 8),
        speaker_width: int = 0,
        dropout: float = 0.0,
        time_scale: float = 100.0,
        scalars: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if width % GROUPS or not dilations:
            raise ValueError(f"the width is a multiple of {GROUPS} and there are blocks; got {width} and {dilations}")
        self.bands, self.width, self.dilations, self.speaker_width = bands, width, tuple(dilations), speaker_width
        self.dropout, self.time_scale, self.scalars = dropout, time_scale, dict(scalars or {})
        embed = 2 * width
        self.time = Embeddings(64, embed, time_scale, scalars)
        self.first = nn.Conv1d(2 * bands + speaker_width, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, embed, d, dropout) for d in self.dilations)
        self.norm, self.last = MaskedGroupNorm(GROUPS, width), zero(nn.Conv1d(width, bands, 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor, mu: Tensor, mask: Tensor, speaker: Tensor | None = None, **scalars: Tensor
    ) -> Tensor:
        emb = silu(self.time(t, scalars))
        h = self.first(beside(x, mu, speaker) * mask)
        for block in self.blocks:
            h = block(h, emb, mask)
        return self.last(silu(self.norm(h, mask)) * mask) * mask


def beside(x: Tensor, mu: Tensor, speaker: Tensor | None) -> Tensor:
    """State, mean and, at each frame, the speaker as channels: (B, 2 bands + speaker_width, T)."""
    parts = [x, mu] if speaker is None else [x, mu, speaker[:, :, None].expand(-1, -1, x.shape[2])]
    return torch.cat(parts, 1)
