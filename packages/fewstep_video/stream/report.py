"""Was a stream in time: latency, jitter and deadlines, in memory that does not grow.

latency    from when a frame was there to when its result was written
jitter     standard deviation of the intervals between blocks of results
deadline   the k-th frame is due k / fps after the first one was written
"""

import math
from typing import Any

import numpy as np

# Of the histogram: from a hundredth of a millisecond to a thousand seconds, in parts of 2 %.
SMALLEST, PER_STEP, BINS = 1e-5, math.log(1.02), 930


class Spread:
    """Mean, deviation and quantiles of seconds, the latter to 2 %."""

    def __init__(self) -> None:
        self.count, self.mean, self._square, self.most = 0, 0.0, 0.0, 0.0
        self._bins = np.zeros(BINS, dtype=np.int64)

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        away = seconds - self.mean
        self.mean += away / self.count
        self._square += away * (seconds - self.mean)
        self.most = max(self.most, seconds)
        place = math.log(max(seconds, SMALLEST) / SMALLEST) / PER_STEP
        self._bins[min(int(place), BINS - 1)] += 1

    @property
    def deviation(self) -> float:
        """0 of fewer than two."""
        return math.sqrt(self._square / self.count) if self.count > 1 else 0.0

    def quantile(self, share: float) -> float:
        """The middle of the bin that holds it."""
        if not self.count:
            return 0.0
        at = int(np.searchsorted(self._bins.cumsum(), share * self.count))
        return min(SMALLEST * math.exp((min(at, BINS - 1) + 0.5) * PER_STEP), self.most)


class StreamReport:
    """What happened when; times are seconds of one clock.

    Args:
        fps: frames per second that are due.
        begin: when the stream began.
    """

    def __init__(self, fps: float, begin: float) -> None:
        self.fps, self.begin = fps, begin
        self.latency, self.interval = Spread(), Spread()
        self.frames = self.skipped = self.missed = 0
        self.first: float | None = None
        self.last, self.worst = begin, 0.0

    def wrote(self, frames: int, now: float, since: float | None = None) -> None:
        """So many frames have just been written; since: when the last that they needed was there."""
        if self.first is None:
            self.first = now
        else:
            self.interval.add(now - self.last)
        for k in range(self.frames, self.frames + frames):
            late = now - (self.first + k / self.fps)
            self.missed += late > 1e-9
            self.worst = max(self.worst, late)
        if since is not None:
            for _ in range(frames):
                self.latency.add(now - since)
        self.frames, self.last = self.frames + frames, now

    def summary(self) -> dict[str, Any]:
        """As JSON has it; milliseconds."""
        spent = self.last - self.begin
        first = (self.first or self.begin) - self.begin
        found: dict[str, Any] = {
            "frames": self.frames,
            "seconds": round(spent, 3),
            "fps": round(self.frames / spent, 2) if spent else 0.0,
            "first_frame_ms": round(1000 * first, 2),
            "interval_ms": round(1000 * self.interval.mean, 2),
            "jitter_ms": round(1000 * self.interval.deviation, 2),
            "deadline": {
                "fps": self.fps,
                "missed": self.missed,
                "share": round(self.missed / self.frames, 4) if self.frames else 0.0,
                "worst_ms": round(1000 * self.worst, 2),
            },
            "skipped": self.skipped,
        }
        if self.latency.count:
            shares = {"median": 0.5, "p95": 0.95, "p99": 0.99}
            found["latency_ms"] = {"mean": round(1000 * self.latency.mean, 2)}
            found["latency_ms"] |= {k: round(1000 * self.latency.quantile(q), 2) for k, q in shares.items()}
            found["latency_ms"]["most"] = round(1000 * self.latency.most, 2)
        return found
