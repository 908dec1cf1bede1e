"""One evaluation in place of guidance against a negative condition (SpeedUpNet, arXiv:2312.08887):

    out = net(x, t, c) + branch(x, t, net(x, t, c), w, n)     stands for     out_c + (w - 1)(out_c - out_n)

The network is frozen, and the branch is 0 at the start. The paper's branch is cross-attention to the negative prompt
beside each of the network's own; here it is any module, which sees what the network says. Its weights fit other
networks of the same kind (fine-tunes of the same base).
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from fewstep.nets.adapter import Adapter
from fewstep.nets.embedding import Embeddings

NEGATIVE = "negative_"


class NegativeBranch(Adapter):
    """A network with such a branch: the conditions `negative_...` and "w" are the branch's, all others the network's.

    Args:
        net: net(x, t, **conditions); it is in evaluation mode always.
        branch: branch(x, t, out, w, **negative conditions) -> shape of out; without negatives: the empty condition.
    """

    def __init__(self, net: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.net, self.branch = net.eval(), branch

    @property
    def scalars(self) -> Mapping[str, float]:
        """Those of the network, and the guidance scale, which the branch embeds."""
        return {**getattr(self.net, "scalars", {}), "w": 1.0}

    def adapter_parameters(self) -> list[nn.Parameter]:
        return list(self.branch.parameters())

    def train(self, mode: bool = True) -> "NegativeBranch":
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, x: Tensor, t: Tensor, w: Tensor, **cond: Tensor) -> Tensor:
        out = self.net(x, t, **{k: v for k, v in cond.items() if not k.startswith(NEGATIVE)})
        return out + self.branch(x, t, out, w, **{k: v for k, v in cond.items() if k.startswith(NEGATIVE)})


class LabelBranch(nn.Module):
    """The branch of a network of classes, 0 at the start: k(t, w) out + net(x, t, negative label, w).

    The network's answer enters linearly, as in guidance, and nothing else knows the positive label, so that what is learnt from some
    pairs of labels goes over to others.

    Args:
        net: net(x, t, label, w) -> shape of out, such as an `MLP` or `UNet` of these classes with the scalar condition "w" (scale 10);
            its last layer, which is set to 0, is called `last`.
    Raises:
        ValueError: networks without classes, or without the condition "w".
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, scalars, classes = net, getattr(net, "scalars", {}), int(getattr(net, "classes", 0))
        if classes < 1 or "w" not in scalars:
            raise ValueError(
                f"LabelBranch needs a network with classes and the scalar condition w, this has {classes} and {list(scalars)}"
            )
        self.classes, last = classes, cast(nn.Module, net.last)
        self.time = Embeddings(64, 64, cast(float, net.time_scale), {"w": scalars["w"]})
        self.own = nn.Linear(64, len(cast(Tensor, last.weight)))
        for layer in (self.own, last):
            for p in layer.parameters():
                nn.init.zeros_(p)

    def forward(self, x: Tensor, t: Tensor, out: Tensor, w: Tensor, negative_label: Tensor | None = None) -> Tensor:
        if negative_label is None:
            negative_label = torch.full((len(x),), self.classes, device=x.device)
        k = self.own(nn.functional.silu(self.time(t, {"w": w})))
        return k.reshape(*k.shape, *[1] * (out.ndim - 2)) * out + self.net(x, t, label=negative_label, w=w)
