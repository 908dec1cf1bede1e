"""Multi-resolution discriminator of UnivNet and BigVGAN: magnitudes of an STFT as an image (arXiv:2106.07889, arXiv:2206.04658).

    (B, N) -> |STFT| (B, 1, F, T), reflect-padded by (n_fft - hop)/2, a Hann window of `win` samples
    conv (3, 9): C; three times conv (3, 9), stride (1, 2) along time: C; conv (3, 3): C; leaky 0.1 after each; conv (3, 3): 1

Weights are normalised. The papers judge by (n_fft, hop, win) = (1024, 120, 600), (2048, 240, 1200), (512, 50, 240) with C = 32: one
discriminator each.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm


class ResolutionDiscriminator(nn.Module):
    """x (B, N) -> [the outputs of all convolutions (B, C, F, L), logits (B, n)].

    Args:
        n_fft, hop, win: of the STFT, samples.
        width: C.
    """

    window: Tensor

    def __init__(self, n_fft: int = 1024, hop: int = 120, win: int = 600, width: int = 32) -> None:
        super().__init__()
        self.n_fft, self.hop, self.win, self.width = n_fft, hop, win, width
        self.register_buffer("window", torch.hann_window(win), persistent=False)
        pairs = [(1, 9, 1), (width, 9, 2), (width, 9, 2), (width, 9, 2), (width, 3, 1)]
        self.layers = nn.ModuleList(weight_norm(nn.Conv2d(i, width, (3, k), (1, s), (1, k // 2))) for i, k, s in pairs)
        self.last = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def spectrogram(self, x: Tensor) -> Tensor:
        """(B, N) -> (B, F, T) magnitudes; their gradient is 0 where they are."""
        x = pad(x[:, None], [(self.n_fft - self.hop) // 2] * 2, "reflect")[:, 0]
        window = self.window.to(x.dtype)
        return torch.stft(x, self.n_fft, self.hop, self.win, window, center=False, return_complex=True).abs()

    def forward(self, x: Tensor) -> list[Tensor]:
        # The channel is the last axis in memory, and stays so: with eight channels half the time of a critic's step on a CPU.
        h, found = self.spectrogram(x).contiguous()[..., None].movedim(-1, 1), []
        for layer in self.layers:
            h = leaky_relu(layer(h), 0.1)
            found.append(h)
        h = self.last(h)
        return [*found, h, h.flatten(1)]
