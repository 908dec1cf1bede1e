"""Students that an adversary judges by the layers of a frozen network: the teacher's, at noised samples, or another one's, at clean ones.

    student   loss.student(C(fake_t')),     critic    loss.critic(C(real_t'), C(fake_t')) + penalty          (discriminators/adversary.py)

Methods add what else they minimise: a distillation (ladd.py, consistency_gan.py), sCM (sana_sprint.py), CTM (ctm_gan.py), as `class X(Judged, Method)`. Those
whose own states are judged, at times of their own (segmented_gan.py, key_points_gan.py), are `JudgedStates`.
"""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoiser
from fewstep.discriminators import Adversary
from fewstep.discriminators.adversary import Judge
from fewstep.discriminators.clean import CleanBackbone
from fewstep.discriminators.discriminator import Discriminator
from fewstep.distill.alternating import AlternatingDistiller, Drawn
from fewstep.distill.rollout import Reached
from fewstep.generator import Generator
from fewstep.train.shell import Batch, Terms


class Judged(AlternatingDistiller):
    """The remaining arguments are those of `AlternatingDistiller`.

    Args:
        adversary: on the teacher's layers, or on those of `network`.
        network: x0 -> anything, frozen; it judges clean samples, for which the adversary's times mean nothing.
    """

    def __init__(
        self, teacher: Generator, iterations: int, adversary: Adversary, network: nn.Module | None = None, **kwargs: Any
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.adversary = adversary
        # Not a submodule, as the teacher is none.
        self._clean = [] if network is None else [CleanBackbone(network)]
        self.add_critic("heads", self.build(teacher))

    def build(self, teacher: Generator) -> Discriminator:
        """The heads."""
        return self.adversary.build(teacher, *self._clean)

    @property
    def backbone(self) -> Denoiser:
        """Whose layers judge: the teacher's, or those of the network for clean samples; on the student's device."""
        return self._clean[0].to(self.device) if self._clean else self.teacher.denoiser

    @property
    def heads(self) -> Discriminator:
        """Those of the adversary."""
        return self.critics["heads"]  # pyright: ignore[reportReturnType]

    def adversarial(self, fake: Tensor, real: Tensor, cond: Cond, y: Tensor | None) -> Tensor:
        """The student's term, a scalar; fake, real: (B, ...), cond those of the teacher."""
        return self.adversary.student_term(self.heads, self.backbone, fake, real, cond, y).mean()

    def critic_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """What the adversary asks of its heads."""
        fake, (real, cond, y, _, _) = reached.estimate.x0, drawn
        found = self.adversary.critic_terms(self.heads, self.backbone, fake, real, cond, y, self.done)
        return {name: v.mean() for name, v in found.items()}


class JudgedStates(Judged):
    """The remaining arguments are those of `Judged`.

    Args:
        adversary: on the teacher's layers; its times are not used.
    Raises:
        ValueError: a `network` of clean samples, since noised states are judged.
    """

    def __init__(self, teacher: Generator, iterations: int, adversary: Adversary, **kwargs: Any) -> None:
        if kwargs.get("network") is not None:
            raise ValueError(
                f"states of {type(self).__name__} are judged by the teacher's layers, not by a network of clean samples"
            )
        super().__init__(teacher, iterations, adversary, **kwargs)

    @abstractmethod
    def judged(self, reached: Reached, drawn: Drawn) -> tuple[Judge, Tensor, Tensor]:
        """(the heads at the states' times, fake, real states (B, ...))."""

    def adversarial_at(self, reached: Reached, drawn: Drawn) -> Tensor:
        """The student's term, a scalar."""
        return self.adversary.student_at(*self.judged(reached, drawn)).mean()

    def critic_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """What the adversary asks of its heads."""
        found = self.adversary.critic_at(*self.judged(reached, drawn), self.done)
        return {name: v.mean() for name, v in found.items()}
