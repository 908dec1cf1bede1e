"""One evaluation in place of guidance against a negative condition (SpeedUpNet, arXiv:2312.08887):

    out = net(x, t, c) + branch(x, t, net(x, t, c), w, n)     stands for     out_c + (w - 1)(out_c - out_n)

The network is frozen, and the branch is 0 at the start. The paper's branch is cross-attention to the negative prompt
beside each of the network's own; here it is any module, which sees what the network says. Its weights fit other
networks of the same kind (fine-tunes of the same base).
"""

from collections.abc import Mapping

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
    """The branch of an `MLP` of classes, 0 at the start: k(t, w) out + h(x, t, w, negative label).

    The network's answer enters linearly, as in guidance, and nothing else knows the positive label, so that what is
    learnt
    from some pairs of labels goes over to others.

    Args:
        dim, hidden, depth, time_scale, classes: as of the network; w_scale: of w in its embedding.
    """

    def __init__(
        self,
        dim: int = 2,
        classes: int = 8,
        hidden: int = 128,
        depth: int = 3,
        time_scale: float = 100.0,
        w_scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.dim, self.classes, self.hidden, self.depth = dim, classes, hidden, depth
        self.time_scale, self.w_scale = time_scale, w_scale
        self.time = Embeddings(64, hidden, time_scale, {"w": w_scale})
        self.label = nn.Embedding(classes + 1, hidden)
        self.first = nn.Linear(dim, hidden)
        self.rest = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth - 1))
        self.own, self.last = nn.Linear(hidden, dim), nn.Linear(hidden, dim)
        for layer in (self.own, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, out: Tensor, w: Tensor, negative_label: Tensor | None = None) -> Tensor:
        if negative_label is None:
            negative_label = torch.full((len(x),), self.classes, device=x.device)
        time = self.time(t, {"w": w})
        h = nn.functional.silu(self.first(x) + time + self.label(negative_label))
        for layer in self.rest:
            h = nn.functional.silu(layer(h))
        return self.own(nn.functional.silu(time)) * out + self.last(h)
