"""Denoising diffusion GAN: so few steps that each is a GAN of its own, trained from data (arXiv:2112.07804).

    x_t = path.sample(x0, eps, t),   x_s ~ q(x_s | x_t, x0)              t -> s one of the student's T steps, each as likely
    x0' = G(x_t, t, z),              x_s' ~ q(x_s | x_t, x0')
    critic    loss.critic(C(x_s, x_t, t), C(x_s', x_t, t)) + penalty in x_s
    student   loss.student(C(x_s', x_t, t))

q is the posterior of the forward chain, in DDPM's terms (beta = 1 - (a_t/a_s)^2)

    mean  a_s beta/s_t^2 x0 + (a_t/a_s) s_s^2/s_t^2 x_t,   variance  beta s_s^2/s_t^2

which is the student's own solver (`Ancestral`): training and sampling take the same step, and (x_s, x_t) of real data has the law of the
chain. Over large steps q(x_s | x_t) has many modes, so G has a latent z (nets/latent.py); one x0' per x_t, a mean, would not do.

The paper has T = 4 on the VP path with beta from .1 to 20, from t = .001, taken for clean: 1 - s^2 = .5217, .0787, .00343, 4e-5. `Uniform()` begins
at 0: .5237, .0791, .00344, 4e-5. One batch serves both networks here, two in the official code.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.discriminators.losses import AdversarialLoss, NonSaturating
from fewstep.discriminators.penalties import R1, Penalty
from fewstep.distill.alternating import AlternatingDistiller, Drawn
from fewstep.distill.rollout import Reached
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.paths import Path, expand
from fewstep.per_sample import sample_each
from fewstep.solvers import Ancestral
from fewstep.solvers.base import Solver
from fewstep.train.shell import Batch, Terms


def posterior(
    x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, path: Path, solver: Solver = Ancestral(), y: Tensor | None = None
) -> Tensor:
    """x_s ~ q(x_s | x_t, x0), differentiable in x0; x0, x_t, y: (B, ...), s <= t: (B,)."""

    def eps() -> Tensor:
        a, b, s_t = (expand(v, x0) for v in path.schedule(t.double()))
        return (x_t - a * x0 - (0 if y is None else b * y)) / s_t

    return sample_each(lambda x, t: Estimate(x0, eps), x_t, path, solver, torch.stack([t, s], 1), y)


class DDGAN(AlternatingDistiller):
    """Denoising diffusion GAN. The teacher is what a fresh `student` is measured against, and what one begins as where none is given.

    Args:
        discriminator: (x_s, x_t, t, **conditions) -> logits (B, n), such as `PairDiscriminator`.
        adversarial: the pair of losses; penalty: on the critic at real x_s. gamma = .02 to .05 and every 15 iterations are not from the paper's
            text but its code's examples, where lazy penalties are not multiplied by their interval as they are here.
    """

    sampler = Ancestral()

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        discriminator: nn.Module,
        adversarial: AdversarialLoss = NonSaturating(),
        penalty: Penalty | None = R1(0.05),
        steps: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, steps=steps, **kwargs)
        self.adversarial, self.penalty = adversarial, penalty
        self.add_critic("discriminator", discriminator)

    @property
    def discriminator(self) -> nn.Module:
        """C."""
        return self.critics["discriminator"]

    def reach(self, drawn: Drawn, cond: Cond) -> Reached:
        """The student's x0' at noised data, at a step of its own for every sample."""
        x0, path, steps = drawn.x0, self.student.denoiser.path, self.student.steps
        times, k = self.student.grid(path, steps).to(x0.device), torch.randint(steps, (len(x0),), device=x0.device)
        x_t = path.sample(x0, drawn.noise, times[k], drawn.y)
        return Reached(x_t, times[k], self.student.denoiser(x_t, times[k], cond, drawn.y), times[k + 1])

    def down(self, x0: Tensor, reached: Reached, drawn: Drawn) -> Tensor:
        """x_s of this x0."""
        student = self.student
        return posterior(x0, reached.x, reached.t, reached.s, student.denoiser.path, student.solver, drawn.y)

    def judge(self, x_s: Tensor, reached: Reached, drawn: Drawn) -> Tensor:
        """C(x_s, x_t, t)."""
        return self.discriminator(x_s, reached.x, reached.t, **drawn.cond)

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The loss of C at the own x_s."""
        own = self.judge(self.down(reached.estimate.x0, reached, drawn), reached, drawn)
        theirs = own
        if self.adversarial.pairs:
            with torch.no_grad():
                theirs = self.judge(self.down(drawn.x0, reached, drawn), reached, drawn)
        return {"adversarial": self.adversarial.student(own, theirs).mean()}

    def critic_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The loss of C at both x_s, and the penalty at the real one."""
        real = self.down(drawn.x0, reached, drawn)
        theirs, own = (self.judge(x, reached, drawn) for x in (real, self.down(reached.estimate.x0, reached, drawn)))
        terms = {"critic": self.adversarial.critic(theirs, own).mean()}
        if self.penalty is not None and self.done % self.penalty.every == 0:
            each = self.penalty(lambda x: self.judge(x, reached, drawn), real, theirs)
            terms["penalty"] = self.penalty.every * each.mean()
        return terms
