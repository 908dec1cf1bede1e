"""SpecFlow: a Vocos-like ConvNeXt backbone (arXiv:2306.00814) as the velocity of a complex spectrogram, one column per frame.

    h      conv_7(x) + conv_7([mel, std])                        (B, W, T), the second once per utterance
    h      ConvNeXt(h, e(t)) for each block
    out    linear(LN(h)) + g(t) x                                (B, 2, F, T)

A frame has 2 F numbers of noise, more than W, so what is to be passed on unchanged has its own way: g, one factor per frequency that the time says.
Waves come of an inverse STFT at the end (`spaces.py`), which makes an evaluation a hundredth of the cost of a network at the rate of samples.
"""

import torch
from torch import Tensor, nn

from fewstep.nets.embedding import TimeEmbedding
from fewstep_audio.vocoder.convnext import ConvNeXt


class SpecFlow(nn.Module):
    """(x (B, 2, F, T), t (B,), features of the mel (B, W, T)) -> (B, 2, F, T).

    Args:
        bands, bins: of the mel, and F.
        width, blocks: W, and how many ConvNeXt blocks; inner: the width of their perceptrons, in W.
    """

    def __init__(self, bands: int = 40, bins: int = 257, width: int = 192, blocks: int = 6, inner: int = 3) -> None:
        super().__init__()
        self.bands, self.bins, self.width, self.blocks, self.inner = bands, bins, width, blocks, inner
        self.time = TimeEmbedding(64, width, scale=100.0)
        self.first = nn.Conv1d(2 * bins, width, 7, padding=3)
        self.of_mel = nn.Conv1d(bands + 1, width, 7, padding=3, bias=False)
        self.layers = nn.ModuleList(ConvNeXt(width, inner * width, width, 1 / blocks) for _ in range(blocks))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, 2 * bins)
        self.gate = nn.Linear(width, bins)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    @property
    def reach(self) -> int:
        """Frames on either side that an output of one evaluation depends on."""
        return 3 * (1 + self.blocks)

    def encode(self, mel: Tensor, std: Tensor) -> dict[str, Tensor]:
        """What serves all times: mel (B, bands, T), std (B, 1, T) its level -> features (B, W, T)."""
        return {"features": self.of_mel(torch.cat([mel, std], 1))}

    def forward(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        embedding = self.time(t)
        h = self.first(x.flatten(1, 2)) + features
        for layer in self.layers:
            h = layer(h, embedding)
        out = self.last(self.norm(h.mT)).mT
        return out.unflatten(1, (2, self.bins)) + self.gate(embedding)[:, None, :, None] * x
