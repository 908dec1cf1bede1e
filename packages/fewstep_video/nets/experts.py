"""Two experts of one denoising: a semantic one for the noisy part of the range, a detail one for the rest (DCM, arXiv:2506.03123).

    detail      the semantic network, with adapters on its attention and with copies of its own of what reads time and text, and of its output
    t > boundary -> semantic,    t <= boundary -> detail;    boundary < t < above is where neither was trained

The weights that both share are in memory and in artifacts once. The official code routes a whole batch by its first sample, with thresholds that
differ between training (981 of 1000) and inference (978); here every sample is routed by itself, by one number.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.nets.adapter import Adapter

# What the detail expert has copies of: Wan's embedder of time and text, its output's modulation and projection.
OWN = ("model.condition_embedder", "model.proj_out", "model.scale_shift_table")
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class Experts(Adapter):
    """net(x (B, ...), t (B,), **conditions) by the expert of each sample's time.

    Args:
        net: the semantic expert, whose weights both share.
        boundary, above: times, see above.
        rank, scale: of the adapters, scale = alpha / rank; targets: ends of the names of the layers that have them.
        own: names of modules and parameters of the network that the detail expert has copies of.
    Raises:
        ImportError: without peft.
        ValueError: above < boundary.
    """

    def __init__(
        self,
        net: nn.Module,
        boundary: float,
        above: float,
        rank: int = 128,
        scale: float = 2.0,
        targets: Sequence[str] = TARGETS,
        own: Sequence[str] = OWN,
    ) -> None:
        super().__init__()
        if not boundary <= above:
            raise ValueError(
                f"the detail expert ends where or below where the semantic one begins, got {boundary} and {above}"
            )
        self.net, self.boundary, self.above = net, boundary, above
        self.rank, self.scale, self.targets, self.own = rank, scale, tuple(targets), tuple(own)
        detail = structure(net)
        self.copies, self.tables = nn.ModuleList(), nn.ParameterList()
        for name in self.own:
            self._copy(detail, name)
        self.adapters = nn.ModuleList(adapted(detail, self.targets, rank, scale))
        # Its parts are registered: shared ones in `net`, its own above.
        self._detail = [detail]

    def _copy(self, detail: nn.Module, name: str) -> None:
        path, _, last = name.rpartition(".")
        place = detail.get_submodule(path)
        theirs = getattr(place, last)
        mine = copy.deepcopy(theirs)
        if isinstance(theirs, nn.Parameter):
            place._parameters = {**place._parameters, last: mine}
            self.tables.append(mine)
        else:
            place._modules[last] = mine
            self.copies.append(mine)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """What the detail expert has of its own."""
        return [p for part in (self.copies, self.tables, self.adapters) for p in part.parameters()]

    @property
    def detail(self) -> nn.Module:
        """The network of the detail expert."""
        return self._detail[0]

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Experts without a sample in the batch are not run.

        Raises:
            ValueError: times between the trained ranges.
        """
        semantic = self.is_semantic(t)
        if semantic.all():
            return self.net(x, t, **cond)
        if not semantic.any():
            return self.detail(x, t, **cond)
        rows = [mask.nonzero()[:, 0] for mask in (semantic, ~semantic)]
        parts = [
            net(x[at], t[at], **{k: v[at] for k, v in cond.items()})
            for net, at in zip((self.net, self.detail), rows, strict=True)
        ]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def is_semantic(self, t: Tensor) -> Tensor:
        """(B,) booleans of times.

        Raises:
            ValueError: times between the trained ranges.
        """
        close = 1e-6 * max(abs(self.boundary), abs(self.above), 1e-3)  # labels are of 32 bits
        between = (t > self.boundary + close) & (t < self.above - close)
        if between.any():
            raise ValueError(
                f"no expert was trained at time {float(t[between][0]):g}: the detail expert's end at {self.boundary:g}, "
                f"the semantic one's begin at {self.above:g}"
            )
        return t > self.boundary + close


def structure(net: nn.Module) -> nn.Module:
    """The same modules in containers of their own: children can be put in their places without touching `net`."""
    if not net._modules:
        return net
    new = copy.copy(net)
    new._modules = {k: None if m is None else structure(m) for k, m in net._modules.items()}
    return new


def adapted(net: nn.Module, targets: Sequence[str], rank: int, scale: float) -> list[nn.Module]:
    """Put adapters, which begin at 0, on these layers of net, in place; their matrices.

    Raises:
        ImportError: without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as err:
        raise ImportError("adapters of experts need the package peft, which is not installed") from err
    wanted = rf".*\b({'|'.join(re.escape(t) for t in targets)})"
    config = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=wanted)  # pyright: ignore
    inject_adapter_in_model(config, net, "detail")
    layers = [m for m in net.modules() if isinstance(m, LoraLayer)]
    return [matrix for layer in layers for matrix in (layer.lora_A, layer.lora_B)]
