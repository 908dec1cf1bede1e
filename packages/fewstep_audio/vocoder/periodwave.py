"""PeriodWave: the vector field of a wave as a sum over periods (arXiv:2408.07547).

    e_p   MLP [sinusoid(1000 t), sqrt(H) embedding(p)]                           (B, H)
    u     conv_7(silu(residuals(sum_p UNet_p(x, e_p, conditioner_p(mel, std)) / sqrt(#periods))))

One U-Net serves all periods. The public code's time runs the other way (1 is clean) and its field has the other sign. States and outputs are in
units of std, see `prior.py`; the network itself sees waves.

At H = 512, 100 bands and five periods: 29.8 million parameters. The widths of the two embeddings are the released ones, H/2 each.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.nn.utils.parametrizations import weight_norm

from fewstep_audio.vocoder.conditioner import Conditioner
from fewstep_audio.vocoder.period_unet import DEPTH, PeriodUNet, residuals


class PeriodWave(nn.Module):
    """(x (B, N), t (B,), std (B, N), features of the mel) -> u (B, N), x and u in units of std.

    Args:
        bands, hop: of the mel.
        periods: p, each sample meets those that are p, 2p, ... away.
        hidden: H; the paper's 512, or 256 and less for CPUs.
        blocks: of the conditioner, at the rate of the mel and at one frame per 64 samples.
        drop_path: of those blocks, while training.
    Raises:
        ValueError: H that 16 does not divide, hops that 128 does not divide, no periods.
    """

    def __init__(
        self,
        bands: int = 100,
        hop: int = 256,
        periods: Sequence[int] = (1, 2, 3, 5, 7),
        hidden: int = 512,
        blocks: tuple[int, int] = (8, 4),
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        if hidden % 16 or not periods:
            raise ValueError(f"PeriodWave needs periods and a multiple of 16 channels, not {periods} and {hidden}")
        self.bands, self.hop, self.periods, self.hidden = bands, hop, tuple(periods), hidden
        self.blocks, self.drop_path = (blocks[0], blocks[1]), drop_path
        half = hidden // 2
        self.conditioner = Conditioner(bands, hop, self.periods, hidden, self.blocks, drop_path)
        self.period = nn.Embedding(len(self.periods), half)
        nn.init.normal_(self.period.weight, 0.0, half**-0.5)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.SiLU(), nn.Linear(4 * hidden, hidden))
        self.unet = PeriodUNet(hidden)
        self.fused = residuals(hidden // 16, 1, 2, 4)
        self.last = weight_norm(nn.Conv1d(hidden // 16, 1, 7, padding=3, bias=False))

    @property
    def unit(self) -> int:
        """Samples after which the columns of all periods repeat: parts of a wave must begin at multiples of it."""
        return math.lcm(DEPTH * math.lcm(*self.periods), self.hop)

    def encode(self, mel: Tensor, std: Tensor) -> dict[str, Tensor]:
        """What serves all times: mel (B, bands, T), std (B, 1, T) -> std (B, T hop) and the features of each period."""
        found = self.conditioner(mel, std)
        return {"std": std[:, 0].repeat_interleave(self.hop, 1)} | {
            f"period_{p}": v for p, v in zip(self.periods, found, strict=True)
        }

    def forward(self, x: Tensor, t: Tensor, std: Tensor, **features: Tensor) -> Tensor:
        std = std[:, : x.shape[1]]
        wave, time = x * std, sinusoid(1000 * t, self.hidden // 2).to(x)
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for k, p in enumerate(self.periods):
            told = self.period.weight[k].expand(len(x), -1) * math.sqrt(self.hidden)
            embedding = self.mlp(torch.cat([time, told], 1))
            total = total + self.unet(wave, embedding, features[f"period_{p}"], p)
        h = self.fused((total / math.sqrt(len(self.periods)))[..., None])[..., 0]
        return self.last(silu(h))[:, 0] / std


def sinusoid(t: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width): sines, then cosines, of width/2 frequencies 1 ... 1e-4, both ends included."""
    steps = torch.arange(width // 2, dtype=t.dtype, device=t.device) / max(width // 2 - 1, 1)
    angle = t[:, None] * torch.exp(-math.log(10_000) * steps)
    return torch.cat([angle.sin(), angle.cos()], 1)
