"""Times at which scores are compared, narrowing as training goes on: first the layout, then the detail.

PRD     low .5 -> .02 over the training, high .98     (arXiv:2503.21694)
"""

from dataclasses import dataclass

from fewstep.times import BetweenTimes


@dataclass(frozen=True)
class Annealed:
    """Shares of the range of times, (at the start, at the end of the annealing); over: the share of training that it takes.

    Raises:
        ValueError: shares out of order.
    """

    low: tuple[float, float] = (0.5, 0.02)
    high: tuple[float, float] = (0.98, 0.98)
    over: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.over <= 1 or any(not 0 <= a < b <= 1 for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError(f"annealing goes over a share in (0, 1] with 0 <= low < high <= 1, not {self}")

    def at(self, progress: float) -> BetweenTimes:
        """The sampler at this share of the training."""
        u = min(progress / self.over, 1.0)
        low, high = (a * (1 - u) + b * u for a, b in (self.low, self.high))
        return BetweenTimes(low, high)
