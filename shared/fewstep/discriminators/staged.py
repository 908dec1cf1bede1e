"""Heads of their own at each of some times, for states that are compared at these alone (AccVideo, arXiv:2503.19462)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoiser
from fewstep.discriminators.discriminator import Discriminator, by_group, features


class StagedDiscriminator(Discriminator):
    """One discriminator for each time, all on the same layers.

    Args:
        times: (k,) of the backbone's path; a sample is judged by the heads of the nearest one.
        stages: k of them.
    """

    times: Tensor

    def __init__(self, times: Tensor, stages: Sequence[Discriminator]) -> None:
        super().__init__(stages[0].layers, [head for stage in stages for head in stage.heads])
        self.register_buffer("times", times.double())

    def forward(self, backbone: Denoiser, x: Tensor, t: Tensor, cond: Cond, y: Tensor | None = None) -> Tensor:
        """x: (B, ...) at times t: (B,) -> logits (B, n)."""
        found, n = features(backbone, self.layers, x, t, cond, y), len(self.layers)
        stage = (t.double()[:, None] - self.times).abs().argmin(1)

        def judge(k: int, rows: Tensor) -> Tensor:
            heads = self.heads[k * n : (k + 1) * n]
            return torch.cat([head(f[rows]) for head, f in zip(heads, found, strict=True)], 1)

        return by_group(stage, judge)
