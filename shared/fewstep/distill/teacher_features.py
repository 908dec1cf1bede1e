"""Distance in the teacher's own layers, for data without a perceptual distance (SoundCTM, arXiv:2405.18503)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoiser
from fewstep.distances import Distance


@dataclass(frozen=True, eq=False)
class TeacherFeatures(Distance):
    """sum over layers of mean |n(a) - n(b)|^2, n(x) = F(x, t)/|F(x, t)| with norms over dimension 1 (channels).

    Two evaluations of the teacher; differentiable in a, of which b's keeps no graph.

    Args:
        teacher: what is evaluated, at states a, b of its path at times t: (B,), with its conditions and anchor.
        layers: dotted names of modules of its network whose outputs are (B, C, ...) tensors.
    Raises:
        ValueError: no layers, or names the network does not have.
    """

    teacher: Denoiser
    t: Tensor
    layers: Sequence[str]
    cond: Cond = field(default_factory=dict)
    y: Tensor | None = None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._features(b)
        pairs = zip(self._features(a), wanted, strict=True)
        return torch.stack([(f - g).square().flatten(1).mean(1) for f, g in pairs]).sum(0)

    def _features(self, x: Tensor) -> list[Tensor]:
        """The unit features of every layer, in the order of `layers`."""
        modules, found = named_layers(self.teacher.net, self.layers), {}
        hooks = [
            module.register_forward_hook(lambda m, i, out, name=name: found.__setitem__(name, out))
            for name, module in modules.items()
        ]
        try:
            self.teacher.raw(x, self.t, self.cond, self.y)
        finally:
            for hook in hooks:
                hook.remove()
        return [f / (f.norm(dim=1, keepdim=True) + 1e-10) for f in (found[name] for name in modules)]


def named_layers(net: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """Name -> module.

    Raises:
        ValueError: no names, or unknown ones.
    """
    modules = dict(net.named_modules())
    if not layers or not set(layers) <= modules.keys():
        known = ", ".join(list(modules)[1:21])
        raise ValueError(f"layers are {list(layers)}; name some of {type(net).__name__}: {known}, ...")
    return {name: modules[name] for name in layers}
