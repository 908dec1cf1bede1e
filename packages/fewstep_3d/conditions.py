"""U-Nets with the conditions of 3-D: classes, embeddings of texts, pictures, cameras; each becomes a vector that is added to the time's.

label (B,)       integers; `classes` itself is the null label
text (B, D)      an embedding of a text; all zero is the null text
image (B, C, H, W)  a picture of the object; all zero is the null picture
camera (B, V, 16)   see rigs.py; never dropped
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from fewstep.denoiser import Cond, Denoiser
from fewstep.nets.unet import UNet, zero


class ConditionedUNet(UNet):
    """The core's U-Net with further conditions.

    Args:
        channels, width, mults, blocks, attention, classes, dropout, time_scale: see `UNet`.
        text: D, 0 for none; image: C, 0 for none; views: V cameras, 0 for none.
        means: the mean of each channel of the state, times sqrt(H W), is told it as well: noise then tells qualities of the whole, such as a size.
        canvas: conditions and time are also drawn as maps of this side, added to those of the lowest level, interpolated to their
            size. They otherwise scale channels alike everywhere, and a state of noise says nothing of place. 0: they are not.
    """

    def __init__(
        self,
        channels: int = 16,
        width: int = 32,
        mults: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        classes: int = 0,
        text: int = 0,
        image: int = 0,
        views: int = 0,
        dropout: float = 0.0,
        time_scale: float = 100.0,
        means: bool = False,
        canvas: int = 0,
    ) -> None:
        super().__init__(channels, width, mults, blocks, attention, classes, None, dropout, time_scale)
        self.text, self.image, self.views, self.means, self.canvas = text, image, views, means, canvas
        embed = 2 * width
        self.of_means = _perceptron(channels, embed) if means else None
        self.of_text = _perceptron(text, embed) if text else None
        self.of_camera = _perceptron(16 * views, embed) if views else None
        self.of_image = PictureEncoder(image, embed) if image else None
        lowest = (width * mults[-1], canvas, canvas)
        self.drawn = _perceptron(embed, math.prod(lowest), 4 * embed) if canvas else None
        if self.drawn:
            zero(self.drawn[-1])
            self.drawn.append(nn.Unflatten(1, lowest))

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of its conditions."""
        sizes = {"label": self.classes, "text": self.text, "image": self.image, "camera": self.views}
        return tuple(name for name, size in sizes.items() if size)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, **scalars: Tensor) -> Tensor:
        """See `UNet`."""
        if self.means:
            scalars = {**scalars, "means": x.mean((2, 3)) * (x.shape[-1] * x.shape[-2]) ** 0.5}
        return super().forward(x, t, label, **scalars)

    def _lowest(self, h: Tensor, emb: Tensor) -> Tensor:
        if self.drawn is not None:
            h = h + interpolate(self.drawn(emb), h.shape[2:], mode="bilinear")
        return super()._lowest(h, emb)

    def _embed(self, t: Tensor, label: Tensor | None, scalars: Mapping[str, Tensor]) -> Tensor:
        parts = {"text": self.of_text, "image": self.of_image, "camera": self.of_camera, "means": self.of_means}
        further = {k: scalars[k] for k in parts if k in scalars}
        emb = super()._embed(t, label, {k: v for k, v in scalars.items() if k not in further})
        lacking = [name for name, part in parts.items() if (part is None) != (name not in further)]
        if lacking:
            raise ValueError(f"the network wants {', '.join(self.wanted)}; it is given {', '.join(further) or 'none'}")
        for name, value in further.items():
            part = parts[name]
            assert part is not None
            emb = emb + part(value.flatten(1) if name == "camera" else value)
        return emb


def _perceptron(dim: int, out: int, hidden: int | None = None) -> nn.Sequential:
    hidden = hidden or out
    return nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, out))


class PictureEncoder(nn.Module):
    """(B, C, H, W), sides of at least 8 -> (B, out): convolutions with stride 2, then 3 x 3 means as one vector."""

    def __init__(self, channels: int, out: int, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.third = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.last = _perceptron(9 * width, out)

    def forward(self, image: Tensor) -> Tensor:
        h = silu(self.third(silu(self.second(silu(self.first(image))))))
        return self.last(torch.nn.functional.adaptive_avg_pool2d(h, 3).flatten(1))


def unwrapped(denoiser: Denoiser) -> ConditionedUNet:
    """The network beneath adapters.

    Raises:
        ValueError: another kind of network.
    """
    net: Any = denoiser.net
    while not isinstance(net, ConditionedUNet):
        if not hasattr(net, "net"):
            raise ValueError(f"a ConditionedUNet is needed, not {type(net).__name__}")
        net = net.net
    return net


def without(cond: Cond, classes: int) -> Cond:
    """The unconditional branch: null label, text and picture; cameras stay.

    Raises:
        ValueError: nothing but cameras.
    """
    out = dict(cond)
    for name, null in (("label", classes), ("text", 0), ("image", 0)):
        if name in out:
            out[name] = torch.full_like(out[name], null)
    if not {"label", "text", "image"} & out.keys():
        raise ValueError(f"conditions {sorted(out)} have no unconditional branch: a label, text or picture is needed")
    return out
