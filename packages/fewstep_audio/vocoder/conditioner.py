"""PeriodWave's conditioner: what the period U-Net is told of the mel, for every period (arXiv:2408.07547).

    [mel, std] (B, bands + 1, T) -> conv_7 -> 8 ConvNeXt-V2 (H), their input added -> silu -> up to one frame per 64 samples, H/2
        -> 4 ConvNeXt-V2 (H/2) -> silu -> for each period p a convolution (2p, 1), stride (p, 1): (B, H, T hop / (64 p), 1)

None of it depends on the time of the flow, so that it runs once per utterance and serves all steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu
from torch.nn.utils.parametrizations import weight_norm

from fewstep_audio.vocoder.convnext import ConvNeXtV2
from fewstep_audio.vocoder.period_unet import DEPTH


class Conditioner(nn.Module):
    """mel (B, bands, T), std (B, 1, T) -> one (B, H, >= ceil(T hop / (64 p)), 1) for each period.

    Args:
        bands, hop: of the mel; periods, hidden: p and H.
        blocks: ConvNeXt-V2 blocks at the rate of the mel, and at the higher one.
        drop_path: of those blocks.
    Raises:
        ValueError: hops that are not 64 times an even number.
    """

    def __init__(
        self, bands: int, hop: int, periods: Sequence[int], hidden: int, blocks: tuple[int, int], drop_path: float
    ) -> None:
        super().__init__()
        if hop % (2 * DEPTH):
            raise ValueError(f"PeriodWave needs a hop of an even number times {DEPTH} samples, not {hop}")
        up, half = hop // DEPTH, hidden // 2
        self.periods = tuple(periods)
        self.embed = nn.Conv1d(bands + 1, hidden, 7, padding=3)
        self.slow = nn.Sequential(*(ConvNeXtV2(hidden, 3 * hidden, drop_path) for _ in range(blocks[0])))
        self.up = weight_norm(nn.ConvTranspose1d(hidden, half, 2 * up, up, up // 2))
        self.fast = nn.Sequential(*(ConvNeXtV2(half, 4 * half, drop_path) for _ in range(blocks[1])))
        # Padded by p - 1 as in the public code.
        self.by_period = nn.ModuleList(
            weight_norm(nn.Conv2d(half, hidden, (2 * p, 1), (p, 1), (p - 1, 0))) for p in self.periods
        )

    def forward(self, mel: Tensor, std: Tensor) -> list[Tensor]:
        h = self.embed(torch.cat([mel, std], 1))
        h = self.up(silu(self.slow(h) + h))
        h = silu(self.fast(h))
        frames, found = h.shape[2], []
        for p, conv in zip(self.periods, self.by_period, strict=True):
            margin = p - frames % p
            mode = "reflect" if margin < frames else "constant"
            found.append(conv(pad(h, (0, margin), mode)[..., None]))
        return found
