"""Complex spectrograms with compressed magnitudes, the space of speech enhancement (arXiv:2208.05830, sp-uhh/sgmse).

    X = c |S|^e exp(i angle S),   S = STFT(x) centred, periodic Hann;   |S| = |X / c|^(1/e)

shapes: wave (B, N), X (B, 2, F, T) real and imaginary part, F = n_fft / 2 + 1, T = N // hop + 1
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fewstep_audio.files import AudioError

# Beneath |S|^2: the derivative of |S|^(e-1) S at S = 0 stays finite, and magnitudes above 1e-5 keep six digits.
_EPS = 1e-16


@dataclass(frozen=True)
class ComplexSpectrogram:
    """The defaults are those at 16 kHz; 48 kHz takes n_fft 1534, hop 384, factor 0.065, exponent 0.667.

    Args:
        n_fft, hop: in samples; the window has n_fft.
        factor: c.
        exponent: e, in (0, 1].
    """

    n_fft: int = 510
    hop: int = 128
    factor: float = 0.15
    exponent: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.n_fft // 2 or not 0 < self.exponent <= 1 or self.factor <= 0:
            raise ValueError(
                f"n_fft {self.n_fft}, hop {self.hop}, factor {self.factor}, exponent {self.exponent}; "
                "allowed: 0 < hop <= n_fft / 2, factor > 0, 0 < exponent <= 1"
            )

    def forward(self, wave: Tensor) -> Tensor:
        """(B, N) -> (B, 2, F, T). Clips shorter than the reflected edge (n_fft / 2) are followed by zeros first.

        Raises:
            AudioError: no samples, or not (B, N).
        """
        if wave.ndim != 2 or wave.shape[1] == 0:
            raise AudioError(f"the wave has shape {tuple(wave.shape)}; allowed: (batch, samples), at least one sample")
        wave = pad(wave, (0, max(self.n_fft // 2 + 1 - wave.shape[1], 0)))
        spec = torch.stft(wave, self.n_fft, self.hop, window=self._window(wave), center=True, return_complex=True)
        return self.compress(torch.view_as_real(spec).movedim(-1, 1))

    def inverse(self, spectrogram: Tensor, length: int) -> Tensor:
        """(B, 2, F, T) -> (B, length), length at most about hop (T - 1) + n_fft / 2."""
        spec = torch.view_as_complex(self.expand(spectrogram).movedim(1, -1).contiguous())
        window = self._window(spectrogram)
        return torch.istft(spec, self.n_fft, self.hop, window=window, center=True, length=length)

    def compress(self, spec: Tensor) -> Tensor:
        """STFT (B, 2, F, T) -> X: c (|S|^2 + tiny)^((e - 1) / 2) S, which has a finite gradient at 0."""
        power = spec.square().sum(1, keepdim=True) + _EPS
        return self.factor * power ** ((self.exponent - 1) / 2) * spec

    def expand(self, spectrogram: Tensor) -> Tensor:
        """X (B, 2, F, T) -> STFT: |X / c|^(1/e - 1) X / c."""
        x = spectrogram / self.factor
        power = x.square().sum(1, keepdim=True) + _EPS
        return power ** ((1 / self.exponent - 1) / 2) * x

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.n_fft, dtype=like.dtype, device=like.device)
