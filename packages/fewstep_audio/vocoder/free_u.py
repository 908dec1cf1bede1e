"""FreeU for a vocoder: the up blocks weigh what comes from below more and the skips less (arXiv:2309.11497, as PeriodWave uses it).

    inside of `free_u`   up(h) = residuals(1.1 conv(h) + 0.9 skip + told)

It helps the many-step teacher alone. A student of two or four steps was trained without and gets worse.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fewstep_audio.vocoder.period_unet import Up


@contextmanager
def free_u(net: nn.Module, backbone: float = 1.1, skip: float = 0.9) -> Iterator[None]:
    """While inside, all up blocks of net use these factors.

    Raises:
        ValueError: networks without such blocks.
    """
    ups = [m for m in net.modules() if isinstance(m, Up)]
    if not ups:
        raise ValueError(f"{type(net).__name__} has no up blocks of a period U-Net, which FreeU reweighs")
    for up in ups:
        up.backbone, up.skip_scale = backbone, skip
    try:
        yield
    finally:
        for up in ups:
            up.backbone = up.skip_scale = 1.0
