"""Distance in the teacher's own layers, for data without a perceptual distance (SoundCTM, arXiv:2405.18503)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoiser
from fewstep.distances import Distance
from fewstep.layer_outputs import layer_outputs


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
        net = self.teacher.net
        found = layer_outputs(net, self.layers, lambda: self.teacher.raw(x, self.t, self.cond, self.y))
        return [f / (f.norm(dim=1, keepdim=True) + 1e-10) for f in found]
