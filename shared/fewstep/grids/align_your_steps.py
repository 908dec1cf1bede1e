"""Align Your Steps (arXiv:2404.14507): noise levels optimised for three public models."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fewstep.grids.base import Grid, between, decreasing
from fewstep.paths import Path
from fewstep.paths.base import nearest_time

LEVELS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}
TIMESTEPS = {
    "sd15": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24),
    "sdxl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13),
}


@dataclass(frozen=True)
class AlignYourSteps(Grid):
    """n levels of s/a from the table of a model, its logarithm interpolated linearly, then the clean end.

    Levels beyond the path's own range begin at t_max. Published indices: TIMESTEPS[model], for `Explicit`.
    """

    model: Literal["sd15", "sdxl", "svd"] = "sd15"

    def __call__(self, path: Path, n: int) -> Tensor:
        _, lo = between(path, n, None)
        table = LEVELS[self.model]
        logs = np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(table)), np.log(table))
        t = nearest_time(path, -torch.tensor(logs))
        return decreasing(torch.cat([t, t.new_tensor([lo])]), self)
