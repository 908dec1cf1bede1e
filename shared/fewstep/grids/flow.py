"""Shifted grids of flow matching: more steps at high noise for larger images."""

import math
from dataclasses import dataclass

from torch import Tensor

from fewstep.grids.base import Grid, between, unit
from fewstep.paths import Path


@dataclass(frozen=True)
class Shifted(Grid):
    """Flow-matching shift k (Stable Diffusion 3, arXiv:2403.03206): t' = k t / (1 + (k - 1) t) on uniform t in [0, 1].

    On the rectified flow it multiplies s/a by k. end: where the uniform t ends.
    """

    shift: float = 3.0
    end: float = 0.0

    def __call__(self, path: Path, n: int) -> Tensor:
        between(path, n, None)
        if (path.t_min, path.t_max) != (0.0, 1.0):
            raise ValueError(
                f"the shifted grid needs times in [0, 1], {type(path).__name__} has [{path.t_min}, {path.t_max}]"
            )
        if not 0 <= self.end < 1 or self.shift <= 0:
            raise ValueError(f"the shifted grid needs shift > 0 and end in [0, 1), got {self.shift} and {self.end}")
        t = 1 - unit(n) * (1 - self.end)
        return self.shift * t / (1 + (self.shift - 1) * t)


@dataclass(frozen=True)
class DynamicShifted(Grid):
    """Shift k = exp(mu) with mu linear in the number of tokens of the image (Flux).

    tokens: of this image; base_mu at base_tokens, top_mu at top_tokens.
    """

    tokens: int = 4096
    base_tokens: int = 256
    top_tokens: int = 4096
    base_mu: float = 0.5
    top_mu: float = 1.15
    end: float = 0.0

    @property
    def mu(self) -> float:
        slope = (self.top_mu - self.base_mu) / (self.top_tokens - self.base_tokens)
        return self.base_mu + slope * (self.tokens - self.base_tokens)

    def __call__(self, path: Path, n: int) -> Tensor:
        return Shifted(math.exp(self.mu), self.end)(path, n)
