"""Enhancement without learning, the baseline: a Wiener filter with the noise power of the quietest frames.

N(f) = mean |Y(f, t)|^2 over the quietest tenth of the frames,   gain = max(1 - over N / |Y|^2, floor)
"""

import torch
from torch import Tensor


def wiener(
    noisy: Tensor, n_fft: int = 256, hop: int = 64, quiet: float = 0.1, over: float = 2.0, floor: float = 0.1
) -> Tensor:
    """(B, N) -> (B, N).

    Args:
        n_fft, hop: of the short-time spectrum, in samples.
        quiet: share of the frames, those of least power, that are taken for noise alone.
        over: factor on the noise power, which a mean over quiet frames underestimates.
        floor: least gain, so that no isolated tones ("musical noise") remain.
    """
    window = torch.hann_window(n_fft, dtype=noisy.dtype, device=noisy.device)
    y = torch.stft(noisy, n_fft, hop, window=window, pad_mode="constant", return_complex=True)
    power = y.abs().square()
    count = max(round(quiet * power.shape[-1]), 1)
    frames = power.sum(1, keepdim=True).argsort(-1)[..., :count].expand(-1, power.shape[1], -1)
    noise = power.gather(-1, frames).mean(-1, keepdim=True)
    gain = (1 - over * noise / power.clamp_min(1e-12)).clamp_min(floor)
    return torch.istft(gain * y, n_fft, hop, window=window, length=noisy.shape[-1])
