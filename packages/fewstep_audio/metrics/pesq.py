"""PESQ (ITU-T P.862 at 8 kHz, P.862.2 at 16 kHz), by the package `pesq`: MOS-LQO from about 1 to 4.549 (nb) or 4.644 (wb)."""

from typing import Literal

from torch import Tensor

from fewstep_audio.metrics.score import Score, Skipped, check_clips, metric_package
from fewstep_audio.resample import resample

RATES = {"nb": 8000, "wb": 16000}


def pesq(estimate: Tensor, reference: Tensor, rate: int, band: Literal["nb", "wb"]) -> Score:
    """Of one clip; both are resampled by one kernel to 8 kHz (nb, narrow band) or 16 kHz (wb, wide band). Levels are left as they are.

    Args:
        estimate, reference: (N,).
        rate: of both, in Hz.
        band: a score of one says nothing about the other.

    Returns:
        The score, or `Skipped` for silence and for clips shorter than a quarter of a second.

    Raises:
        ValueError: other shapes or bands.
        ModuleNotFoundError: the package pesq is missing.
    """
    check_clips(estimate, reference)
    if band not in RATES:
        raise ValueError(f"band is {band!r}; allowed: {', '.join(RATES)}")
    package = metric_package("pesq")
    if not (estimate.any() and reference.any()):
        return Skipped("silence")
    x, s = (resample(v.detach().float().cpu(), rate, RATES[band]).numpy() for v in (estimate, reference))
    try:
        return float(package.pesq(RATES[band], s, x, band))
    except package.BufferTooShortError:
        return Skipped("shorter than a quarter of a second")
    except package.NoUtterancesError:
        return Skipped("no speech detected")
