"""Multi-period discriminator of HiFi-GAN: every p-th sample as a column of an image (arXiv:2010.05646, section 2.3 and appendix A).

    (B, N) -> reflect-pad to a multiple of p -> (B, 1, N/p, p)
    conv (5, 1), stride (3, 1): 32, 128, 512, 1024 channels; conv (5, 1), stride 1: 1024; leaky 0.1 after each; conv (3, 1): 1

Weights are normalised. The outputs of all convolutions are matched, the last one's included, as in the public code. The paper judges by
p = 2, 3, 5, 7, 11: one discriminator each.
"""

from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm


class PeriodDiscriminator(nn.Module):
    """x (B, N) -> [the outputs of all convolutions (B, C, L, p), logits (B, n)].

    Args:
        period: p.
        width: channels of the first layer; the others have 4, 16, 32 and 32 times as many. 32 in the paper, 8 for CPUs.
    """

    def __init__(self, period: int, width: int = 32) -> None:
        super().__init__()
        self.period, self.width = period, width
        channels = [1, width, 4 * width, 16 * width, 32 * width]
        pairs = [*zip(channels, channels[1:], [3] * 4, strict=False), (32 * width, 32 * width, 1)]
        self.layers = nn.ModuleList(weight_norm(nn.Conv2d(i, o, (5, 1), (s, 1), (2, 0))) for i, o, s in pairs)
        self.last = weight_norm(nn.Conv2d(32 * width, 1, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor) -> list[Tensor]:
        h = pad(x[:, None], (0, -x.shape[1] % self.period), "reflect").unflatten(2, (-1, self.period))
        found = []
        for layer in self.layers:
            h = leaky_relu(layer(h), 0.1)
            found.append(h)
        h = self.last(h)
        return [*found, h, h.flatten(1)]
