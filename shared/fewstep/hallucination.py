"""Hallucination filter (arXiv:2406.09358): samples between the modes of the data change their mind to the end.

    score = mean over elements of Var_k[x0(x_k, t_k)],    k over the last steps of the trajectory

High for samples that interpolate between modes; generate more than needed and keep those of low score. The paper uses
the last 10 of 1000 steps. Running moments (Welford) are kept, not the trajectory.
"""

import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.sampling import Callback
from fewstep.solvers.base import Row


class PredictionVariance(Callback):
    """Variance of the x0 predictions of one trajectory, one prediction per step; `score` is per sample.

    Args:
        since: the first time that counts: `grid[-1 - k]` for the last k steps.
    Use a new one for every trajectory.
    """

    def __init__(self, since: float) -> None:
        self.since, self.count = since, 0
        self._mean: Tensor | None = None
        self._m2: Tensor | None = None
        self._open = True  # whether the current step has not been counted yet

    def on_estimate(self, x: Tensor, estimate: Estimate, row: Row) -> Estimate:
        """Take the first estimate of a step into the running moments."""
        if row.t <= self.since and self._open:
            x0, self._open = estimate.x0.detach(), False
            self.count += 1
            mean = torch.zeros_like(x0) if self._mean is None else self._mean
            m2 = torch.zeros_like(x0.real) if self._m2 is None else self._m2
            change = x0 - mean
            self._mean = mean + change / self.count
            self._m2 = m2 + (change * (x0 - self._mean).conj()).real
        return estimate

    def on_step(self, x: Tensor, done: int, total: int, row: Row) -> bool:
        self._open = True
        return False

    @property
    def score(self) -> Tensor:
        """(B,) mean over elements of the variance; the divisor is the number of predictions."""
        if self._m2 is None or self.count < 2:
            raise ValueError(f"{self.count} predictions seen since t = {self.since}; a variance needs at least 2")
        return (self._m2 / self.count).flatten(1).mean(1)


def keep_lowest(score: Tensor, share: float) -> Tensor:
    """Indices of the `share` of samples (at least one) with the lowest score, in their order; score: (B,), share in (0,
    1].
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share is {share}; allowed: above 0, up to 1")
    kept = max(1, round(share * len(score)))
    return score.argsort(stable=True)[:kept].sort().values
