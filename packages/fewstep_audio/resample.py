"""Change of sampling rate, everywhere with one kernel: a Kaiser-windowed sinc of 64 zero crossings (torchaudio's `kaiser_best`).

Both signals of a comparison must pass through the same kernel; so there is no choice of it.
"""

import torchaudio.functional as AF
from torch import Tensor

_KERNEL = {
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "resampling_method": "sinc_interp_kaiser",
    "beta": 14.769656459379492,
}


def resample(wave: Tensor, rate: int, to: int) -> Tensor:
    """(..., N) at `rate` Hz -> (..., ceil(N to / rate)) at `to` Hz; the input itself where the rates are equal."""
    if min(rate, to) < 1:
        raise ValueError(f"rates are {rate} and {to} Hz; allowed: at least 1")
    return wave if rate == to else AF.resample(wave, rate, to, **_KERNEL)
