"""Features of a network with fixed random weights, which nothing has to be downloaded for.

Three convolutions of 16, 32, 64 channels, 3x3(x3), strides (1,2,2), (2,2,2), (2,2,2) or in space alone 2, 2, 2, weights N(0, 2/fan_in), no bias, leaky
ReLU of slope .2; of every layer mean and standard deviation over space (and time): 224 numbers. Distances are comparable at equal `fingerprint`,
size and number of clips alone; it is their order that means something.
"""

import hashlib
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

WIDTHS = (16, 32, 64)
CHUNK = 64


class RandomFeatures(nn.Module):
    """(B, 3, F, H, W) or (B, 3, H, W) -> (B, 224); one channel is taken as three equal ones.

    Args:
        dimensions: 3 for clips, 2 for pictures.
        seed: of the weights.
    """

    def __init__(self, dimensions: Literal[2, 3] = 3, seed: int = 0) -> None:
        super().__init__()
        self.dimensions, self.seed = dimensions, seed
        generator, width, weights = torch.Generator().manual_seed(seed), 3, []
        for out in WIDTHS:
            shape = (out, width, *[3] * dimensions)
            fan_in = width * 3**dimensions
            weights.append(torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5)
            width = out
        self.weights = nn.ParameterList(weights).requires_grad_(False)
        self.strides = ((1, 2, 2), (2, 2, 2), (2, 2, 2)) if dimensions == 3 else ((2, 2),) * 3

    @property
    def fingerprint(self) -> str:
        """Tells other weights apart."""
        data = b"".join(w.detach().cpu().numpy().tobytes() for w in self.weights)
        return hashlib.sha256(data).hexdigest()[:12]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._some(part) for part in x.split(CHUNK)])

    def _some(self, x: Tensor) -> Tensor:
        convolve = nn.functional.conv3d if self.dimensions == 3 else nn.functional.conv2d
        h, found = x.float().expand(-1, 3, *x.shape[2:]), []
        for weight, stride in zip(self.weights, self.strides, strict=True):
            h = leaky_relu(convolve(h, weight, stride=stride, padding=1), 0.2)
            flat = h.flatten(2)
            found += [flat.mean(2), flat.std(2, correction=0)]
        return torch.cat(found, 1)


@cache
def extractor(dimensions: Literal[2, 3], seed: int = 0) -> RandomFeatures:
    """Made once."""
    return RandomFeatures(dimensions, seed)
