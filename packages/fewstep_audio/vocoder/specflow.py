"""SpecFlow: a ConvNeXt over time and frequency as the velocity of a wave's MDCT coefficients. It looks at them as a complex spectrogram.

    S      STFT(IMDCT(std x)) / std                              (B, F, T) complex, std as the mel says it at the bins
    h      linear([S, log std] of P neighbouring bins) + linear(mel, level) + place
    h      ConvNeXt(h, e(t)) for each block                      (B, F / P, T, W)
    V      linear(LN(h)) + g(t) S                                (B, F, T) complex, g one factor per bin that the time says
    out    MDCT(ISTFT(std V)) / std                              (B, M, T)

A bin's phase is that at the centre of its frame. States and outputs are those of waves, so there is nothing between frames and bins that the network would
have to keep consistent, as there is in a flow of the spectrogram itself; and the convolutions see a harmonic at any pitch as the same pattern.
Of the family of Vocos (arXiv:2306.00814) and RFWave (arXiv:2403.05010): a frame of samples costs one column, not one evaluation each.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fewstep.nets.embedding import TimeEmbedding
from fewstep_audio.vocoder.convnext import ConvNeXt
from fewstep_audio.vocoder.mdct import at_coefficients, imdct, mdct


class SpecFlow(nn.Module):
    """(x (B, hop, T), t (B,), features (B, F / P, T, W), envelope (B, F, T)) -> (B, hop, T).

    Args:
        bands, n_fft, hop: of the mel; F = n_fft / 2 + 1, and n_fft is a multiple of 2 hop.
        width, blocks: W, and how many ConvNeXt blocks; inner: the width of their perceptrons, in W.
        patch: P, bins that make one position.
    Raises:
        ValueError: n_fft is no multiple of 2 hop.
    """

    def __init__(
        self,
        bands: int = 40,
        n_fft: int = 512,
        hop: int = 128,
        width: int = 48,
        blocks: int = 6,
        inner: int = 2,
        patch: int = 4,
    ) -> None:
        super().__init__()
        if n_fft % (2 * hop):
            raise ValueError(f"n_fft is a multiple of 2 hop, not {n_fft} with hop {hop}")
        self.bands, self.n_fft, self.hop = bands, n_fft, hop
        self.width, self.blocks, self.inner, self.patch = width, blocks, inner, patch
        self.bins = n_fft // 2 + 1
        self.places = -(-self.bins // patch)
        self.time = TimeEmbedding(64, width, scale=100.0)
        self.first = nn.Linear(3 * patch, width)
        self.of_mel = nn.Conv1d(bands + 1, self.places * width, 1)
        self.place = nn.Parameter(0.02 * torch.randn(self.places, 1, width))
        self.layers = nn.ModuleList(ConvNeXt(width, inner * width, width, 1 / blocks) for _ in range(blocks))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, 2 * patch)
        self.gate = nn.Linear(width, self.bins)
        for p in self.gate.parameters():
            nn.init.zeros_(p)

    @property
    def reach(self) -> int:
        """Frames on either side that an output of one evaluation depends on."""
        return self.n_fft // self.hop + ConvNeXt.REACH * len(self.layers)

    def encode(self, mel: Tensor, std: Tensor, envelope: Tensor) -> dict[str, Tensor]:
        """What serves all times: mel (B, bands, T), std (B, 1, T) its level, envelope (B, F, T), the prior's deviation at the bins."""
        features = self.of_mel(torch.cat([mel, std], 1)).unflatten(1, (self.places, -1)).transpose(2, 3)
        return {"features": features + self.place, "envelope": envelope}

    def forward(self, x: Tensor, t: Tensor, features: Tensor, envelope: Tensor) -> Tensor:
        embedding, std = self.time(t), at_coefficients(envelope, self.hop)
        seen = self.spectrum(imdct(x * std)) / envelope[:, None]
        log = envelope.log10()
        h = self.first(self.patches(torch.cat([seen, (log - log.mean(1, keepdim=True))[:, None]], 1))) + features
        for layer in self.layers:
            h = layer(h, embedding)
        out = self.unpatched(self.last(self.norm(h))).to(x) + self.gate(embedding)[:, None, :, None] * seen
        return mdct(self.wave(out * envelope[:, None]), self.hop) / std

    def patches(self, x: Tensor) -> Tensor:
        """(B, C, F, T) -> (B, F / P, T, P C), zeros above the last bin."""
        x = pad(x, (0, 0, 0, self.places * self.patch - self.bins)).unflatten(2, (self.places, self.patch))
        return x.permute(0, 2, 4, 3, 1).flatten(3)

    def unpatched(self, h: Tensor) -> Tensor:
        """(B, F / P, T, P C) -> (B, C, F, T)."""
        return h.unflatten(3, (self.patch, -1)).permute(0, 4, 1, 3, 2).flatten(2, 3)[:, :, : self.bins]

    def spectrum(self, wave: Tensor) -> Tensor:
        """(B, N) -> (B, 2, F, T), phases as at the centres of frames."""
        window = self._window(wave)
        spec = torch.stft(wave, self.n_fft, self.hop, window=window, pad_mode="constant", return_complex=True)
        return torch.view_as_real(spec * self._signs(wave)).movedim(-1, 1)

    def wave(self, spectrum: Tensor) -> Tensor:
        """(B, 2, F, T) -> (B, (T - 1) hop), the wave whose spectrum is nearest."""
        spec = torch.view_as_complex(spectrum.movedim(1, -1).contiguous()) * self._signs(spectrum)
        length = self.hop * (spec.shape[2] - 1)
        return torch.istft(spec, self.n_fft, self.hop, window=self._window(spectrum), length=length)

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.n_fft, dtype=like.dtype, device=like.device)

    def _signs(self, like: Tensor) -> Tensor:
        """(-1)^f: from phases at the beginning of a frame to those at its centre, and back."""
        return (1 - 2 * (torch.arange(self.bins, device=like.device) % 2)).to(like)[:, None]
