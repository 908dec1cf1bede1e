"""Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019, "SDR - half-baked or well done?", arXiv:1811.02508).

    SI-SDR = 10 log10 |a s|^2 / |a s - x|^2,   a = <x, s> / |s|^2

Means are not subtracted (torchmetrics' zero_mean=False), as in sp-uhh/sgmse.

shapes: estimate x, reference s (..., N) -> (...) in dB
"""

import torch
from torch import Tensor


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """(...), differentiable; at most what the floating point type resolves (138 dB in float32), nan where the reference is silent."""
    gain = (estimate * reference).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True)
    target = gain * reference
    power, error = target.square().sum(-1), (target - estimate).square().sum(-1)
    least = torch.finfo(estimate.dtype).eps ** 2
    return 10 * (power / torch.maximum(error, least * power)).log10()
