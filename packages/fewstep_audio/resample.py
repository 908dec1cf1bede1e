"""Change of sampling rate, everywhere with one kernel: a Kaiser-windowed sinc of 64 zero crossings (torchaudio's `kaiser_best`).

Both signals of a comparison must pass through the same kernel; so there is no choice of it.
"""

import math
from collections.abc import Iterable, Iterator

import torch
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


def note(file: object, rate: int, own: int) -> str:
    """What a model of `own` Hz does to a file of `rate` Hz: one line with its end, empty for equal rates."""
    lost = f"; nothing above {own // 2} Hz is left" if rate > own else ""
    return f"{file} has {rate} Hz, the model {own} Hz: resampled there and back{lost}\n" if rate != own else ""


def resample_blocks(blocks: Iterable[Tensor], rate: int, to: int) -> Iterator[Tensor]:
    """`resample` of a signal that comes in blocks (C, n) of any n: the same samples as at once, in blocks; memory holds one block.

    A block is resampled with as many neighbours as the kernel reaches, cut at multiples of the rates' smallest common period.
    """
    common = math.gcd(rate, to)
    down, up = rate // common, to // common
    if down == up:
        yield from blocks
        return
    reach = down * math.ceil(_KERNEL["lowpass_filter_width"] / (min(down, up) * _KERNEL["rolloff"]))
    held, left = None, 0  # left: samples already resampled, kept as neighbours
    for block in blocks:
        held = block if held is None else torch.cat([held, block], dim=1)
        ready = left + (held.shape[1] - left - reach) // down * down
        if ready > left:
            yield resample(held[:, : ready + reach], rate, to)[:, left // down * up : ready // down * up]
            held, left = held[:, max(ready - reach, 0) :], min(ready, reach)
    if held is not None:
        yield resample(held, rate, to)[:, left // down * up :]
