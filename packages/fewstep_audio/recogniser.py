"""A small recogniser of spoken digits, and the figures it gives of speech: accuracy, and Frechet distance in its feature space.

    FD = fewstep.metrics.frechet_distance(speech_features(mels), speech_features(real_mels))

at equal numbers only: it is biased upwards at few. It reads `digits_8k` mels. The weights ship with the package (folder
`digits_recogniser`, made by recipes/audio/fsdd_recogniser.yaml; its config.json says how).
"""

from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from fewstep.artifacts import load
from fewstep_audio.mels import PRESETS

FRAMES = 64  # 1.02 s, longer than all but a few of the spoken digits
_MEL = PRESETS["digits_8k"]


class DigitsRecogniser(nn.Module):
    """mel: (B, 40, 64) of `fit_frames` -> logits (B, 10). Three convolutions over time, each halving it; below 0.1 M parameters."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.conv1 = nn.Conv1d(_MEL.bands, width, 5, stride=2, padding=2)
        self.conv2 = nn.Conv1d(width, width, 5, stride=2, padding=2)
        self.conv3 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.mix = nn.Linear(width * FRAMES // 8, width)
        # Without it features grow as training goes on, and with them the unit of the distance.
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.last = nn.Linear(width, 10)

    def features(self, mel: Tensor) -> Tensor:
        """The layer before the logits, (B, width), of mean 0 and variance 1 over the width."""
        x = silu(self.conv3(silu(self.conv2(silu(self.conv1(mel))))))
        return self.norm(self.mix(x.flatten(1)))

    def forward(self, mel: Tensor) -> Tensor:
        return self.last(self.features(mel))


def fit_frames(mel: Tensor, frames: Tensor | None = None) -> Tensor:
    """(B, 40, T) -> (B, 40, 64): cut, or followed by silence; silence also beyond the (B,) `frames` of each, where given."""
    if frames is not None:
        inside = torch.arange(mel.shape[2], device=mel.device) < frames[:, None, None].to(mel.device)
        mel = mel.where(inside, _MEL.floor)
    return pad(mel[..., :FRAMES], (0, max(FRAMES - mel.shape[2], 0)), value=_MEL.floor)


@cache
def recogniser() -> DigitsRecogniser:
    """The shipped recogniser, in evaluation mode."""
    return cast(DigitsRecogniser, load(Path(__file__).parent / "digits_recogniser").requires_grad_(False))


@torch.no_grad()
def speech_features(mel: Tensor, frames: Tensor | None = None) -> Tensor:
    """Features of `digits_8k` mels (B, 40, T), each of `frames` (B,) frames, by the shipped recogniser: (B, 64)."""
    return recogniser().to(mel.device).features(fit_frames(mel.float(), frames))


@torch.no_grad()
def recognise(mel: Tensor, frames: Tensor | None = None) -> Tensor:
    """The digits that are heard, (B,) int64."""
    return recogniser().to(mel.device)(fit_frames(mel.float(), frames)).argmax(1)
