"""Extended short-time objective intelligibility (Jensen & Taal 2016), by the package `pystoi`: 1 is perfect, noise lies near 0."""

import warnings

from torch import Tensor

from fewstep_audio.metrics.score import Score, Skipped, check_clips, metric_package


def estoi(estimate: Tensor, reference: Tensor, rate: int) -> Score:
    """Of one clip; the package resamples both to 10 kHz. Correlations below 0 count as 0: nothing intelligible is left.

    Args:
        estimate, reference: (N,).
        rate: of both, in Hz.

    Returns:
        The score in [0, 1], or `Skipped` for silence and for clips with less than 30 frames (0.4 s) of speech.

    Raises:
        ValueError: other shapes.
        ModuleNotFoundError: the package pystoi is missing.
    """
    check_clips(estimate, reference)
    package = metric_package("pystoi")
    if not (estimate.any() and reference.any()):
        return Skipped("silence")
    if len(reference) < 0.4 * rate:
        return Skipped("shorter than 0.4 seconds")
    x, s = (v.detach().double().cpu().numpy() for v in (estimate, reference))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Not enough STFT frames")
        try:
            return min(max(float(package.stoi(s, x, rate, extended=True)), 0.0), 1.0)
        except RuntimeWarning:
            return Skipped("less than 0.4 seconds of speech")
