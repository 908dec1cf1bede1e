"""A discriminator with what its training needs: an adversarial term for any method.

x_t = path.sample(x0, eps, t'),   t' from `times`
critic    loss.critic(C(real_t), C(fake_t)) + penalty
student   weight loss.student(C(fake_t))
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
        t = self.draw(fake, backbone.path)
        x, x_real = (self.noised(x0, t, backbone.path, y) for x0 in (fake, real))
        return self.student_at(critic, backbone, x, x_real, t, cond, y)

    def student_at(
        self,
        critic: Discriminator,
        backbone: Denoiser,
        fake: Tensor,
        real: Tensor,
        t: Tensor,
        cond: Cond,
        y: Tensor | None,
    ) -> Tensor:
        """The same of states at t: (B,)."""
        own = theirs = critic(backbone, fake, t, cond, y)
        if self.loss.pairs:
            with torch.no_grad():
                theirs = critic(backbone, real, t, cond, y)
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
        t = self.draw(fake, backbone.path)
        x_real, x = (self.noised(x0, t, backbone.path, y) for x0 in (real, fake))
        return self.critic_at(critic, backbone, x, x_real, t, cond, y, iteration)

    def critic_at(
        self,
        critic: Discriminator,
        backbone: Denoiser,
        fake: Tensor,
        real: Tensor,
        t: Tensor,
        cond: Cond,
        y: Tensor | None,
        iteration: int = 0,
    ) -> dict[str, Tensor]:
        """The same of states at t: (B,)."""
        theirs, own = (critic(backbone, x, t, cond, y) for x in (real, fake))
        terms = {"critic": self.critic_weight * self.loss.critic(theirs, own)}
        if self.penalty is not None and iteration % self.penalty.every == 0:
            each = self.penalty(lambda v: critic(backbone, v, t, cond, y), real)
            terms["penalty"] = self.critic_weight * self.penalty.every * each
        return terms
