"""Heads on layers of a denoiser: how real a noised sample is, (x_t, t) -> logits (LADD, arXiv:2403.12015; DMD2, arXiv:2405.14867)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoiser
from fewstep.discriminators.heads import Head
from fewstep.generator import Generator
from fewstep.layer_outputs import layer_outputs


class Discriminator(nn.Module):
    """One head for each layer. The backbone is given at every call and is no part of this module.

    Args:
        layers: dotted names of modules of the backbone's network whose outputs are (B, C, ...).
        heads: one for each.
    """

    def __init__(self, layers: Sequence[str], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers, self.heads = tuple(layers), nn.ModuleList(heads)

    @classmethod
    def on(
        cls, generator: Generator, layers: Sequence[str], head: Head, backbone: Denoiser | None = None
    ) -> "Discriminator":
        """Heads for these layers of a generator's network, or another backbone's, whose features are looked at once."""
        found, _ = example_features(generator, layers, backbone)
        return cls(layers, [head.build(f) for f in found])

    def forward(self, backbone: Denoiser, x: Tensor, t: Tensor, cond: Cond, y: Tensor | None = None) -> Tensor:
        """x: (B, ...) at times t: (B,) of the backbone's path -> logits (B, n)."""
        return self.judge(features(backbone, self.layers, x, t, cond, y))

    def judge(self, found: Sequence[Tensor]) -> Tensor:
        """The logits of the layers' features."""
        return torch.cat([head(f) for head, f in zip(self.heads, found, strict=True)], 1)


@torch.no_grad()
def example_features(
    generator: Generator, layers: Sequence[str], backbone: Denoiser | None = None
) -> tuple[list[Tensor], Cond]:
    """(features (2, C, ...) of the layers at the generator's example, which heads are made for; its conditions).

    backbone: the generator's own denoiser unless given.
    """
    backbone = generator.denoiser if backbone is None else backbone
    x0, cond, y = generator.example()
    t = torch.full((len(x0),), backbone.path.t_max, dtype=torch.float64, device=x0.device)
    return features(backbone, layers, x0, t, cond, y), cond


def features(
    backbone: Denoiser, layers: Sequence[str], x: Tensor, t: Tensor, cond: Cond, y: Tensor | None = None
) -> list[Tensor]:
    """The outputs of the layers of its network at (x, t)."""
    return layer_outputs(backbone.net, layers, lambda: backbone.raw(x, t, cond, y))


def by_group(group: Tensor, judge: Callable[[int, Tensor], Tensor]) -> Tensor:
    """(B, n): judge(g, rows) -> (rows, n) for the rows of every group g of (B,), put back in order."""
    rows = {g: (group == g).nonzero()[:, 0] for g in group.unique().tolist()}
    parts = [judge(g, at) for g, at in rows.items()]
    return torch.cat(parts)[torch.cat(list(rows.values())).argsort()]
