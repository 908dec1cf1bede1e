"""Mel to wave without a network: phases by Griffin & Lim's iteration (1984, with momentum: Perraudin et al. 2013). The floor of quality."""

from dataclasses import dataclass

import torch
import torchaudio.functional as AF
from torch import Tensor

from fewstep_audio.mels import Mel


@dataclass(frozen=True)
class GriffinLim:
    """A vocoder for any mel front end.

    Args:
        mel: the front end.
        iterations: of the phases.
        momentum: 0.99 as in librosa and torchaudio; 0 is the method of 1984.
    """

    mel: Mel
    iterations: int = 32
    momentum: float = 0.99

    def vocode(self, mel: Tensor) -> Tensor:
        """(B, bands, T) -> (B, N): N = T hop for framing "same", (T - 1) hop for "centre"; the same wave for the same mel."""
        front, frames = self.mel, mel.shape[2]
        least = front.n_fft // front.hop + 2  # torch's own framing reflects half a window
        if frames < least:
            mel = torch.cat([mel, mel.new_full((*mel.shape[:2], least - frames), mel.amin().item())], 2)
        magnitude = self.magnitude(mel)
        # Frame i lies around sample i hop here, and around (i + 1/2) hop in the framing "same": a frame more covers the first half.
        late, length = 0, front.hop * (mel.shape[2] - 1)
        if front.framing == "same":
            late, length = front.hop - front.hop // 2, length + front.hop
            magnitude, length = torch.cat([magnitude[:, :, :1], magnitude], 2), length + late
        sizes = front.n_fft, front.hop, front.win
        # From random phases, always the same: from zero ones, which cancel, rounding errors of the mel grow to audible ones.
        with torch.random.fork_rng([mel.device] if mel.is_cuda else []):
            torch.manual_seed(0)
            wave = AF.griffinlim(
                magnitude, front.window.to(mel), *sizes, 1.0, self.iterations, self.momentum, length, rand_init=True
            )
        return wave[:, late : late + front.hop * (frames - (front.framing == "centre"))]

    def magnitude(self, mel: Tensor) -> Tensor:
        """|STFT| (B, n_fft/2 + 1, T): the least squares solution with F |STFT| = exp mel, its negative parts cut off."""
        size = mel.exp() if self.mel.log == "ln" else 10**mel
        return (torch.linalg.pinv(self.mel.matrix.to(mel)) @ size).clamp(min=0)
