"""Distances between two sets of clips in random features: rFVD, mFVD (motion alone), aFID (frames alone), KVD.

    features of both sets, minus the mean and over the deviation of the real ones;
    d^2 = |mu - mu'|^2 + tr(C) + tr(C') - 2 tr((C^1/2 C' C^1/2)^1/2)             rFVD: of clips, mFVD: of the differences of their frames,
                                                                               aFID: of single frames
    KVD = unbiased MMD^2 with k(x, y) = (x.y/D + 1)^3                            (arXiv:1801.01401), of clips; for less than 500

Random features see appearance far better than time: shuffled frames hardly change rFVD, but mFVD. The Frechet distances are biased upwards by about
D^2/n: give the floor, real against real at equal numbers, beside them, and at least 5 x 224 clips where values matter.
shapes: real (N, C, F, H, W), fake (M, C, F, H, W) in [-1, 1];  results are floats
"""

import torch
from torch import Tensor

from fewstep.metrics import frechet_distance
from fewstep_video.metrics.random_features import extractor


def rfvd(real: Tensor, fake: Tensor) -> float:
    """Of whole clips."""
    return _frechet(*_features(real, fake, _clips))


def mfvd(real: Tensor, fake: Tensor) -> float:
    """Of the differences of neighbouring frames: motion. Raises ValueError of clips of one frame."""
    return _frechet(*_features(real, fake, _differences))


def afid(real: Tensor, fake: Tensor) -> float:
    """Of single frames; pictures (N, C, H, W) serve as well."""
    return _frechet(*_features(real, fake, _frames))


def kvd(real: Tensor, fake: Tensor) -> float:
    """Kernel distance of whole clips; single values may be negative."""
    return _kernel_distance(*_features(real, fake, _clips))


def diversity(real: Tensor, fake: Tensor) -> float:
    """Mean distance between two of the fake clips over that between two of the real ones, in the features of whole clips."""
    x, y = _features(real, fake, _clips)
    return (torch.pdist(y).mean() / torch.pdist(x).mean()).item()


def law_figures(real: Tensor, fake: Tensor) -> dict[str, float]:
    """All of them."""
    x, y = _features(real, fake, _clips)
    found = {"rfvd": _frechet(x, y), "mfvd": mfvd(real, fake), "afid": afid(real, fake), "kvd": _kernel_distance(x, y)}
    return found | {"diversity": (torch.pdist(y).mean() / torch.pdist(x).mean()).item()}


def _clips(video: Tensor) -> Tensor:
    return extractor(3)(video.cpu())


def _differences(video: Tensor) -> Tensor:
    if video.shape[2] < 2:
        raise ValueError(f"motion needs clips of at least 2 frames, not {video.shape[2]}")
    return extractor(3)(video.cpu().diff(dim=2))


def _frames(video: Tensor) -> Tensor:
    return extractor(2)(video.cpu() if video.ndim == 4 else video.cpu().transpose(1, 2).flatten(0, 1))


def _features(real: Tensor, fake: Tensor, of) -> tuple[Tensor, Tensor]:  # noqa: ANN001
    """Both in units of the real ones', float64."""
    for name, video in (("real", real), ("fake", fake)):
        if video.ndim not in (4, 5) or video.shape[1] not in (1, 3) or len(video) < 2:
            raise ValueError(f"{name} clips are {tuple(video.shape)}; allowed: at least 2 of (1 or 3, F, H, W)")
        if not bool(video.isfinite().all()):
            raise ValueError(f"{name} clips hold nan or inf")
    x, y = of(real).double(), of(fake).double()
    mean, std = x.mean(0), x.std(0)
    # A feature that no real clip moves has no unit.
    std = torch.where(std > 1e-6 * std.max(), std, 1.0)
    return (x - mean) / std, (y - mean) / std


def _frechet(x: Tensor, y: Tensor) -> float:
    return frechet_distance(x, y).item()


def _kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased."""
    d = x.shape[1]

    def within(v: Tensor) -> Tensor:
        k = (v @ v.T / d + 1) ** 3
        return (k.sum() - k.diagonal().sum()) / (len(v) * (len(v) - 1))

    return (within(x) + within(y) - 2 * ((x @ y.T / d + 1) ** 3).mean()).item()
