"""Ask the network about the end of the step: x0(x_t, s) where the grid steps t -> s.

The published SB sampler of SGMSE+ (arXiv:2409.10753) calls its network so, with the state of t and the time of s. It is
kept to reproduce its numbers; a network trained on pairs (x_t, t) is asked about a level that its input does not have.
"""

from itertools import pairwise

from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.estimate import Estimate
from fewstep.paths import Path


class NextTime:
    """Denoiser in, denoiser out: x0 of the next time of the grid, and its eps at the level of the state.

    Args:
        denoise: the bound denoiser.
        path: the path of the states.
        grid: (n + 1,) the times that sampling uses.
        y: (B, ...) the anchor on anchored paths.
    """

    def __init__(self, denoise: Denoise, path: Path, grid: Tensor, y: Tensor | None = None) -> None:
        self.denoise, self.path, self.grid, self.y = denoise, path, grid, y
        self._next = dict(pairwise(grid.tolist()))

    def prepare(self, times: tuple[float, ...], x: Tensor) -> None:
        """Prepare the denoiser inside for the later times."""
        if hasattr(self.denoise, "prepare"):
            later = tuple(self._next[t] for t in times)
            self.denoise.prepare(later, x)  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if isinstance(t, Tensor) or t not in self._next:
            raise ValueError(f"NextTime knows the steps from {self.grid.tolist()[:-1]}, not from {t}")
        x0 = self.denoise(x, self._next[t]).x0
        a, b, s = self.path.levels(t)
        return Estimate(x0, lambda: ((x if self.y is None else x - b * self.y) - a * x0) / s)
