"""PeriodWave's U-Net over one period, the same network for all of them (arXiv:2408.07547).

    fold    reflect-pad N to a multiple of 64 p;  (B, N) -> (B, 1, N / p, p), row-major: column j holds the samples j, j + p, ...
    down    1 -> H/16 -> H/8 (/4) -> H/4 (/4), each told the time and the period
    middle  H/4 -> H (/4) + the mel's features, which are not told the time
    up      H -> H/4 (x4) -> H/8 (x4) -> H/16 (x4), each with the skip added and told the time
    unfold  (B, H/16, N)

Kernels are (k, 1): samples meet others of their own column alone. Shifting a wave by one sample changes the columns, so this network is not
shift-equivariant. Skips are added, hence the last width must be H/16.
"""

from torch import Tensor, nn
from torch.nn.functional import pad, silu
from torch.nn.utils.parametrizations import weight_norm

# Samples of one column that the deepest layer sees as one: three strides of 4.
DEPTH = 64


def fold(x: Tensor, period: int) -> Tensor:
    """(B, N) -> (B, 1, ceil(N / (64 p)) 64, p); padded by reflection, or by zeros where x is no longer than the margin."""
    margin = -x.shape[1] % (DEPTH * period)
    x = pad(x, (0, margin), "reflect") if margin < x.shape[1] else pad(x, (0, margin))
    return x.reshape(len(x), 1, -1, period)


def unfold(x: Tensor, length: int) -> Tensor:
    """(B, C, L, p) -> (B, C, length), the inverse of `fold` with its margin cut off."""
    return x.flatten(2)[:, :, :length]


def column(cin: int, cout: int, kernel: int, stride: int = 1, dilation: int = 1, bias: bool = True) -> nn.Module:
    """A convolution along the columns alone, weights normalised."""
    padding = (kernel - 1) * dilation // 2
    return weight_norm(nn.Conv2d(cin, cout, (kernel, 1), (stride, 1), (padding, 0), (dilation, 1), bias=bias))


class Residual(nn.Module):
    """h + conv_1(silu(conv_d(silu(h)))), kernels of 3."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.one, self.two = column(channels, channels, 3, dilation=dilation), column(channels, channels, 3)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.two(silu(self.one(silu(h))))


def residuals(channels: int, *dilations: int) -> nn.Sequential:
    """Residual blocks, one after another."""
    return nn.Sequential(*(Residual(channels, d) for d in dilations))


class Told(nn.Module):
    """Linear(silu(e)): (B, H) -> (B, C, 1, 1)."""

    def __init__(self, embed: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed, channels)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.linear(silu(embedding))[:, :, None, None]


class Down(nn.Module):
    """residuals(conv(silu(h)) + told); the first, on samples, without the activation."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, embed: int) -> None:
        super().__init__()
        self.first = cin == 1
        self.conv, self.told = column(cin, cout, kernel, stride, bias=False), Told(embed, cout)
        self.residuals = residuals(cout, 1, 2)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.residuals(self.conv(h if self.first else silu(h)) + self.told(embedding))


class Middle(nn.Module):
    """residuals(conv(silu(h)) + features of the mel). Not told the time, as in the public code."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv, self.residuals = column(cin, cout, 9, 4, bias=False), residuals(cout, 1, 2, 4)

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        h = self.conv(silu(h))
        return self.residuals(h + features[:, :, : h.shape[2]])


class Up(nn.Module):
    """residuals(backbone conv_transposed(silu(h)) + skip_scale skip + told); both factors are 1 but inside of `free_u`."""

    def __init__(self, cin: int, cout: int, embed: int) -> None:
        super().__init__()
        self.conv = weight_norm(nn.ConvTranspose2d(cin, cout, (8, 1), (4, 1), (2, 0), bias=False))
        self.told, self.residuals = Told(embed, cout), residuals(cout, 1, 2)
        self.backbone = self.skip_scale = 1.0

    def forward(self, h: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
        return self.residuals(self.backbone * self.conv(silu(h)) + self.skip_scale * skip + self.told(embedding))


class PeriodUNet(nn.Module):
    """x (B, N), embedding (B, H), features (B, H, >= ceil(N / (64 p)), p) -> (B, H/16, N).

    Args:
        hidden: H, a multiple of 16.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        a, b, c = hidden // 16, hidden // 8, hidden // 4
        self.downs = nn.ModuleList(
            [Down(1, a, 1, 1, hidden), Down(a, b, 9, 4, hidden), Down(b, c, 9, 4, hidden)],
        )
        self.middle = Middle(c, hidden)
        self.ups = nn.ModuleList([Up(hidden, c, hidden), Up(c, b, hidden), Up(b, a, hidden)])

    def forward(self, x: Tensor, embedding: Tensor, features: Tensor, period: int) -> Tensor:
        h, skips = fold(x, period), []
        for down in self.downs:
            h = down(h, embedding)
            skips.append(h)
        h = self.middle(h, features)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            h = up(h, skip, embedding)
        return unfold(h, x.shape[1])
