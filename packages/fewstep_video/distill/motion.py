"""Motion apart from appearance: what a consistency loss compares in place of clips (MCM, arXiv:2406.06890), z (B, C, F, H, W) -> (B, ...).

    Raw                  z                                                                              plain LCM
    Differences          z_{f+gap} - z_f
    LowPass, HighPass    below and above a Butterworth cut-off in time and space, 1/(1 + (d/d_0)^2n)    together z
    Correlation          softmax over positions of z_f . z_{f+1} / sqrt(C): where everything went       all positions, or a window around
    Learned              z + head(z), frame by frame; head = 0 at the start                             the paper's choice

A representation is trained with the student where it has weights, and used for losses alone.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold


class Motion(nn.Module, ABC):
    """z: (B, C, F, H, W) -> (B, ...)."""

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor: ...


class Raw(Motion):
    """The clip itself."""

    def forward(self, z: Tensor) -> Tensor:
        return z


class Differences(Motion):
    """What changes in `gap` frames; blind to what stays.

    Raises:
        ValueError: clips that are no longer than the gap.
    """

    def __init__(self, gap: int = 1) -> None:
        super().__init__()
        self.gap = gap

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[2] <= self.gap:
            raise ValueError(f"differences over {self.gap} frames need clips that are longer, not {z.shape[2]}")
        return z[:, :, self.gap :] - z[:, :, : -self.gap]


class LowPass(Motion):
    """FreeInit's filter (arXiv:2312.07537), centred also where a side is odd.

    Args:
        space, time: cut-offs as shares of Nyquist's frequency; order: of the Butterworth filter.
    """

    def __init__(self, space: float = 0.25, time: float = 0.25, order: int = 4) -> None:
        super().__init__()
        self.space, self.time, self.order = space, time, order

    def gain(self, z: Tensor) -> Tensor:
        """(F, H, W)."""
        f, h, w = (2 * torch.fft.fftfreq(n, device=z.device, dtype=torch.float64) for n in z.shape[2:])
        square = (f / self.time).square()[:, None, None]
        square = square + (h / self.space).square()[:, None] + (w / self.space).square()
        return (1 / (1 + square**self.order)).to(z.dtype)

    def forward(self, z: Tensor) -> Tensor:
        axes = (2, 3, 4)
        return torch.fft.ifftn(torch.fft.fftn(z, dim=axes) * self.gain(z), dim=axes).real


class HighPass(LowPass):
    """What `LowPass` leaves."""

    def forward(self, z: Tensor) -> Tensor:
        return z - super().forward(z)


class Correlation(Motion):
    """Frame to frame, as GMFlow (arXiv:2111.13680) begins its flow.

    Args:
        window: odd side of the square of positions that are looked at; 0 for all.
        scaled: times the square root of the height, against the smallness of probabilities over all positions.
    """

    def __init__(self, window: int = 0, scaled: bool = False) -> None:
        super().__init__()
        if window < 0 or (window and window % 2 == 0):
            raise ValueError(f"a window has an odd side, or is 0 for all positions, not {window}")
        self.window, self.scaled = window, scaled

    def forward(self, z: Tensor) -> Tensor:
        """(B, F - 1, H W, positions)."""
        a, b = (v.transpose(1, 2) for v in (z[:, :, :-1], z[:, :, 1:]))  # (B, F - 1, C, H, W)
        found = self.local(a, b) if self.window else torch.einsum("bfci,bfcj->bfij", a.flatten(3), b.flatten(3))
        shares = (found / math.sqrt(z.shape[1])).softmax(-1)
        return math.sqrt(z.shape[3]) * shares if self.scaled else shares

    def local(self, a: Tensor, b: Tensor) -> Tensor:
        """Products within the window; -inf outside of the picture."""
        n, frames, channels, height, width = a.shape
        pad, area = self.window // 2, self.window**2
        near = unfold(b.flatten(0, 1), self.window, padding=pad).reshape(n, frames, channels, area, height * width)
        inside = unfold(torch.ones(1, 1, height, width, device=a.device), self.window, padding=pad)[0].T > 0
        found = torch.einsum("bfci,bfcki->bfik", a.flatten(3), near)
        return found.masked_fill(~inside, -math.inf)


class Learned(Motion):
    """SiLU, then [convolution, GroupNorm, SiLU] layers - 1 times, then a 1x1 convolution that starts at 0; beside the identity.

    The paper's: 2 layers of kernel 1; its `hlearn` has 5 of kernel 3.

    Args:
        channels: of the states; hidden: of the head; groups: of its normalisation.
    Raises:
        ValueError: fewer than 2 layers, or an even kernel.
    """

    def __init__(self, channels: int = 4, hidden: int = 64, layers: int = 2, kernel: int = 1, groups: int = 32) -> None:
        super().__init__()
        if layers < 2 or kernel % 2 == 0:
            raise ValueError(f"a head has 2 layers or more and an odd kernel, not {layers} and {kernel}")
        self.channels, self.hidden, self.layers = channels, hidden, layers
        self.kernel, self.groups = kernel, groups
        parts: list[nn.Module] = [nn.SiLU()]
        for k in range(layers - 1):
            parts += [nn.Conv2d(hidden if k else channels, hidden, kernel, padding=kernel // 2)]
            parts += [nn.GroupNorm(groups, hidden), nn.SiLU()]
        last = nn.Conv2d(hidden, channels, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]
        self.head = nn.Sequential(*parts, last)

    def forward(self, z: Tensor) -> Tensor:
        frames = z.transpose(1, 2)
        return z + self.head(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)
