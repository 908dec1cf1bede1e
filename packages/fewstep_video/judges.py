"""What validation says of samples: distances to the held-out clips, and the truth of a procedural world."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.class_generator import Judge
from fewstep_video.metrics.differences import acceleration
from fewstep_video.metrics.laws import diversity, kvd, mfvd, rfvd
from fewstep_video.metrics.truth import truth_figures
from fewstep_video.worlds import World


@dataclass(frozen=True)
class ClipJudge(Judge):
    """mfvd, rfvd, kvd, diversity: one number per batch, the same for all its samples: compare them at equal batches only.

    motion: mean |second difference| over that of the batch's own clips: near 0 a frozen student, which every smoothness figure would like.
    """

    def __call__(self, samples: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        real, n = batch["video"], len(samples)
        found = {"mfvd": mfvd(real, samples), "rfvd": rfvd(real, samples), "kvd": kvd(real, samples)}
        found["diversity"] = diversity(real, samples)
        whole = {k: torch.full((n,), v) for k, v in found.items()}
        if real.shape[2] < 3:
            return whole
        return whole | {"motion": acceleration(samples) / acceleration(real).mean().clamp_min(1e-6)}


@dataclass(frozen=True)
class WorldJudge(ClipJudge):
    """Also what `metrics.truth_figures` reads off samples of a world."""

    world: World

    def __call__(self, samples: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().__call__(samples, batch) | truth_figures(self.world, samples, batch["label"])
