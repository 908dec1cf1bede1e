"""LPIPS-type distance on a fixed random convolution net: a perceptual proxy that needs no weights to download.

    d(a, b) = sum over layers of mean over positions of |f_l(a)/|f_l(a)| - f_l(b)/|f_l(b)||^2

The form is LPIPS (arXiv:1801.03924, eq. 1) with unit channel weights; the features are random instead of learned.
It grows with blur, but values compare only at equal seed and widths, and never with published LPIPS.
shapes: images (B, 3, H, W) in [0, 1], H and W >= 16;  result (B,), >= 0, at most 2 per layer
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.metrics.psnr import check_images


class RandomFeatureDistance(nn.Module):
    """d(a, b), shape (B,), on conv3x3-ReLU stages of stride 2, He-normal weights without bias drawn from `seed`.

    The same seed gives the same net on every device: weights are drawn on the CPU. Differentiable in a and b.
    """

    def __init__(self, seed: int = 0, widths: Sequence[int] = (16, 32, 64, 64)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        channels = (3, *widths)
        for index, (c_in, c_out) in enumerate(zip(channels, widths, strict=False)):
            weight = torch.randn(c_out, c_in, 3, 3, generator=generator) * (2 / (9 * c_in)) ** 0.5
            self.register_buffer(f"weight{index}", weight)
        self.stages = len(widths)

    def features(self, image: Tensor) -> list[Tensor]:
        """ReLU maps of every stage, (B, C_l, ceil(H / 2^l), ceil(W / 2^l)), l = 1, 2, ..."""
        x = 2 * image - 1
        maps = []
        for index in range(self.stages):
            x = F.relu(F.conv2d(x, self.get_buffer(f"weight{index}").to(x.dtype), stride=2, padding=1))
            maps.append(x)
        return maps

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        check_images(a, b, smallest=16)
        distance = a.new_zeros(len(a))
        for f_a, f_b in zip(self.features(a), self.features(b), strict=True):
            gap = F.normalize(f_a, dim=1) - F.normalize(f_b, dim=1)
            distance = distance + gap.square().sum(1).flatten(1).mean(1)
        return distance
