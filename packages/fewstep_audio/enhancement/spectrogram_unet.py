"""A small U-Net over complex spectrograms for CPUs: the core's image U-Net with the conditions as further channels."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fewstep.nets.unet import UNet
from fewstep_audio.enhancement.conditions import beside


class SpectrogramUNet(UNet):
    """net(x: (B, 2, F, T), t: (B,), conditions by name: (B, 2, F, T), scalars by name: (B,)) -> (B, 2, F, T).

    With the prediction `Residual` its output is y - x0, so that an untrained network returns the noisy speech.

    Args:
        conditions: names of the spectrograms that it sees beside x; others are not looked at.
        width, mults, blocks, attention, scalars, dropout, time_scale: see `fewstep.nets.unet.UNet`.
    """

    def __init__(
        self,
        conditions: Sequence[str] = ("noisy",),
        width: int = 16,
        mults: Sequence[int] = (1, 1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        scalars: Mapping[str, float] | None = None,
        dropout: float = 0.0,
        time_scale: float = 100.0,
    ) -> None:
        super().__init__(2 * (1 + len(conditions)), width, mults, blocks, attention, 0, scalars, dropout, time_scale)
        self.conditions = tuple(conditions)

    def forward(self, x: Tensor, t: Tensor, **given: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See the class."""
        scalars = {k: v for k, v in given.items() if k in self.scalars}
        return super().forward(beside(x, self.conditions, given), t, None, **scalars)[:, :2]
