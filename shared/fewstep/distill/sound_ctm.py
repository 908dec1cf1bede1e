"""SoundCTM: CTM with the teacher as its own perceptual distance, and with two ways of guidance (arXiv:2405.18503).

    estimate   G(x_t, t -> s | c, w)
    target     sg G^-(x_u, u -> s | c, w),    x_u = the w-guided teacher's k steps from x_t,   w ~ U[2, 5], told to the
    student
    L_CTM      sum over layers |F(estimate, s) - F(target, s)|^2        F: unit features of the teacher at the states of
    time s

States are compared at s where they are noised, as the teacher knows them: nothing is pushed to the clean end. A tenth
of the samples has no condition, so that the student learns both branches; sampling mixes them (nu of `JumpGenerator`).
No adversarial part; denoising as in CTM.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.distances import Distance
from fewstep.distill.ctm import CTM, Push
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.teacher_features import TeacherFeatures
from fewstep.generator import Generator
from fewstep.jump import JumpGenerator
from fewstep.layer_outputs import named_layers


class SoundCTM(CTM):
    """SoundCTM; the remaining arguments are those of `CTM`, whose `distance` is not used.

    Args:
        layers: of the teacher's network, by name; the official code takes the outputs of all blocks of its U-Net.
    Raises:
        ValueError: no layers, or names the network does not have.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        layers: Sequence[str] = (),
        guidance: TeacherGuidance = TeacherGuidance(2.0, 5.0, told=True),
        drop: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, guidance=guidance, drop=drop, **kwargs)
        named_layers(teacher.denoiser.net, layers)
        self.layers = tuple(layers)

    def inner(self) -> JumpGenerator:
        return self.target.net

    def push(self, cond: Cond, y: Tensor | None) -> Push:
        return lambda x, s: x

    def measure(self, s: Tensor, cond: Cond, y: Tensor | None) -> Distance:
        return TeacherFeatures(self.teacher.denoiser, s, self.layers, cond, y)
