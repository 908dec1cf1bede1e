"""A discriminator with what its training needs: an adversarial term for any method.

x_t = path.sample(x0, eps, t'),   t' from `times`
critic    loss.critic(C(real_t), C(fake_t)) + penalty
student   weight loss.student(C(fake_t))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoiser
from fewstep.discriminators.discriminator import Discriminator
from fewstep.discriminators.heads import Head, PatchHead
from fewstep.discriminators.losses import AdversarialLoss, NonSaturating
from fewstep.discriminators.penalties import Penalty
from fewstep.generator import Generator
from fewstep.paths import Path
from fewstep.times import LogitNormalTimes, TimeSampler


class Judge(NamedTuple):
    """A critic on the layers of a backbone, at times t: (B,) of its path and with conditions and anchor: states (B, ...) -> logits (B, n)."""

    critic: Discriminator
    backbone: Denoiser
    t: Tensor
    cond: Cond
    y: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.critic(self.backbone, x, self.t, self.cond, self.y)


@dataclass(frozen=True)
class Adversary:
    """What is recipes' `adversary`.

    Args:
        layers: of the backbone, see `Discriminator`.
        head, loss, penalty: its parts; times: of the noise that real and generated samples get, the same for both.
        weight: of the student's term; critic_weight: of the critic's, which counts where the backbone learns too (DMD2: .003 and .01).
    """

    layers: Sequence[str]
    head: Head = PatchHead()  # noqa: RUF009
    loss: AdversarialLoss = NonSaturating()  # noqa: RUF009
    penalty: Penalty | None = None
    times: TimeSampler = LogitNormalTimes()  # noqa: RUF009
    weight: float = 1.0
    critic_weight: float = 1.0

    def build(self, generator: Generator, backbone: Denoiser | None = None) -> Discriminator:
        """Heads for this generator's network, or another backbone's."""
        return Discriminator.on(generator, self.layers, self.head, backbone)

    def noised(self, x0: Tensor, t: Tensor, path: Path, y: Tensor | None) -> Tensor:
        """x_t of samples, with fresh noise."""
        return path.sample(x0, torch.randn_like(x0), t, y)

    def draw(self, x0: Tensor, path: Path) -> Tensor:
        """t': (B,) for a batch."""
        return self.times(len(x0), path).to(x0.device)

    def student_term(
        self, critic: Discriminator, backbone: Denoiser, fake: Tensor, real: Tensor, cond: Cond, y: Tensor | None
    ) -> Tensor:
        """weight loss.student, (B,); fake: (B, ...) with the student's graph."""
        judge = Judge(critic, backbone, self.draw(fake, backbone.path), cond, y)
        return self.student_at(judge, *(self.noised(x0, judge.t, backbone.path, y) for x0 in (fake, real)))

    def student_at(self, judge: Judge, fake: Tensor, real: Tensor) -> Tensor:
        """The same of states at the judge's times."""
        own = theirs = judge(fake)
        if self.loss.pairs:
            with torch.no_grad():
                theirs = judge(real)
        return self.weight * self.loss.student(own, theirs)

    def critic_terms(
        self,
        critic: Discriminator,
        backbone: Denoiser,
        fake: Tensor,
        real: Tensor,
        cond: Cond,
        y: Tensor | None,
        iteration: int = 0,
    ) -> dict[str, Tensor]:
        """{"critic": (B,), "penalty": (B,)}, the latter where there is one in this iteration."""
        judge = Judge(critic, backbone, self.draw(fake, backbone.path), cond, y)
        x_real, x = (self.noised(x0, judge.t, backbone.path, y) for x0 in (real, fake))
        return self.critic_at(judge, x, x_real, iteration)

    def critic_at(self, judge: Judge, fake: Tensor, real: Tensor, iteration: int = 0) -> dict[str, Tensor]:
        """The same of states at the judge's times."""
        theirs, own = judge(real), judge(fake)
        terms = {"critic": self.critic_weight * self.loss.critic(theirs, own)}
        if self.penalty is not None and iteration % self.penalty.every == 0:
            terms["penalty"] = self.critic_weight * self.penalty.every * self.penalty(judge, real, theirs)
        return terms
