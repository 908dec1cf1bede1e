"""Text encoder and duration predictor of Glow-TTS, Grad-TTS, CoMoSpeech (arXiv:2305.06908) and Matcha-TTS (arXiv:2309.03199).

    symbols -> embedding sqrt(width) -> prenet -> post-norm transformer blocks -> mu (the mean mel of each symbol)
                                                                              -> log durations, of the detached features

shapes: ids (B, Tx);  mask (B, 1, Tx);  mu (B, bands, Tx);  log durations (B, Tx);  speaker (B,) -> (B, speaker_width)
"""

import math

import torch
from torch import Tensor, nn

from fewstep.nets.unet import zero
from fewstep_audio.tts.attention import RotaryAttention, WindowedAttention
from fewstep_audio.tts.norms import ChannelNorm


class Prenet(nn.Module):
    """x + project(3 x (dropout(relu(norm(conv5(.)))))), the projection 0 at first."""

    def __init__(self, width: int, dropout: float = 0.5, layers: int = 3) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(layers))
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(layers))
        self.drop, self.project = nn.Dropout(dropout), zero(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = self.drop(norm(conv(h * mask)).relu())
        return (x + self.project(h)) * mask


class FeedForward(nn.Module):
    """conv3(dropout(relu(conv3(x))))."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.wider, self.back = nn.Conv1d(width, hidden, 3, padding=1), nn.Conv1d(hidden, width, 3, padding=1)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.back(self.drop(self.wider(x * mask).relu()) * mask)


class Block(nn.Module):
    """norm(x + attention(x)), norm(x + feed forward(x))."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float, window: int | None) -> None:
        super().__init__()
        self.attention = (
            RotaryAttention(width, heads, dropout)
            if window is None
            else WindowedAttention(width, heads, dropout, window)
        )
        self.feed, self.drop = FeedForward(width, hidden, dropout), nn.Dropout(dropout)
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.drop(self.attention(x, mask)))
        return self.norm2(x + self.drop(self.feed(x, mask))) * mask


class DurationPredictor(nn.Module):
    """(B, C, Tx) -> log frames of each symbol (B, Tx): 2 x dropout(norm(relu(conv3))), conv1."""

    def __init__(self, width: int, hidden: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(width, hidden, 3, padding=1), nn.Conv1d(hidden, hidden, 3, padding=1)
        self.norm1, self.norm2, self.drop = ChannelNorm(hidden), ChannelNorm(hidden), nn.Dropout(dropout)
        self.out = nn.Conv1d(hidden, 1, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.drop(self.norm1(self.conv1(x * mask).relu()))
        x = self.drop(self.norm2(self.conv2(x * mask).relu()))
        return (self.out(x) * mask)[:, 0]


class TextEncoder(nn.Module):
    """ids, mask, speaker -> (mu, log durations, the speaker's embedding).

    Args:
        symbols: how many there are, with the blank.
        bands: of the mel spectrogram.
        width, hidden, heads, layers: of the transformer; hidden: of its feed-forward parts.
        window: of relative attention; None: rotary positions, as in Matcha-TTS.
        dropout, prenet_dropout: 0.1 and 0.5 in the papers.
        duration_width: of the duration predictor.
        speakers, speaker_width: how many, and the width of the embedding that stands beside the features of each symbol from the
            transformer on; 0: none.
    """

    def __init__(
        self,
        symbols: int,
        bands: int = 80,
        width: int = 192,
        hidden: int = 768,
        heads: int = 2,
        layers: int = 6,
        window: int | None = 4,
        dropout: float = 0.1,
        prenet_dropout: float = 0.5,
        duration_width: int = 256,
        speakers: int = 0,
        speaker_width: int = 0,
    ) -> None:
        super().__init__()
        self.symbols, self.bands, self.width, self.hidden, self.heads, self.layers = (
            symbols,
            bands,
            width,
            hidden,
            heads,
            layers,
        )
        self.window, self.dropout, self.prenet_dropout = window, dropout, prenet_dropout
        if (speakers > 0) != (speaker_width > 0):
            raise ValueError(f"speakers have an embedding of positive width; got {speakers} of width {speaker_width}")
        self.duration_width, self.speakers, self.speaker_width = duration_width, speakers, speaker_width
        inner = width + speaker_width
        self.voices = nn.Embedding(speakers, speaker_width) if speakers else None
        self.embedding = nn.Embedding(symbols, width)
        nn.init.normal_(self.embedding.weight, 0.0, width**-0.5)
        self.prenet = Prenet(width, prenet_dropout)
        self.blocks = nn.ModuleList(Block(inner, hidden, heads, dropout, window) for _ in range(layers))
        self.project, self.durations = nn.Conv1d(inner, bands, 1), DurationPredictor(inner, duration_width, dropout)

    def forward(self, ids: Tensor, mask: Tensor, speaker: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """speaker: (B,) numbers.

        Raises:
            ValueError: a speaker is given or lacks against `speakers`.
        """
        if (speaker is None) != (self.voices is None):
            raise ValueError(
                f"the encoder has {self.speakers} speakers and is given {'none' if speaker is None else 'one'}"
            )
        x, voice = self.prenet(self.embedding(ids).mT * math.sqrt(self.width), mask), None
        if self.voices is not None:
            voice = self.voices(speaker)
            x = torch.cat([x, voice[:, :, None].expand(-1, -1, x.shape[2])], 1) * mask
        for block in self.blocks:
            x = block(x, mask)
        return self.project(x) * mask, self.durations(x.detach(), mask), voice
