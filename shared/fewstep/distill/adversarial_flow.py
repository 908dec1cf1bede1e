"""Adversarial flow matching: the teacher's sampler of N fixed steps, trained as one generator through all of them (PeriodWave-Turbo, arXiv:2408.08019).

    x0' = N Euler steps from noise
    student   reconstruction d(x0', x0) + sum_k [ loss.student(C_k(x0')) + features L_fm(C_k; x0, x0') ]
    critics   sum_k loss.critic(C_k(x0), C_k(x0'))

L_fm compares the layers of the discriminators (discriminators/sample.py), which are networks of their own on clean samples. x0 is the data where
conditions say what it must be (a vocoder's spectrogram), so that any noise has to lead there; otherwise the teacher's own sample from the same
noise, from `pool` or read from disk. The paper has 45 times a multi-scale L1 distance of mel spectrograms, 2 L_fm, least squares, N = 2 or 4,
and about 1000 steps of training; its own training code is not published.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.discriminators.losses import AdversarialLoss, LeastSquares
from fewstep.discriminators.penalties import Penalty
from fewstep.discriminators.sample import feature_matching
from fewstep.distances import L1, Distance
from fewstep.distill.alternating import AlternatingDistiller, Drawn
from fewstep.distill.pool import PairPool, pairs_of
from fewstep.distill.rollout import LastStep, Reached, Rollout
from fewstep.generator import Generator
from fewstep.solvers import DDIM
from fewstep.train.shell import Batch, Terms


class AdversarialFlow(AlternatingDistiller):
    """The student samples in `steps` steps of Euler's method, which here is DDIM.

    Args:
        discriminators: x0 -> [layers ..., logits] each.
        adversarial: losses of their logits; penalty: of each, at x0.
        reconstruction: factor of `distance`; features: of L_fm.
        pool: pairs of the teacher in place of data; batches that hold pairs need none.
        rollout: through how many steps before the last gradients pass.
    """

    sampler = DDIM()

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        discriminators: Sequence[nn.Module],
        adversarial: AdversarialLoss = LeastSquares(),
        penalty: Penalty | None = None,
        distance: Distance = L1(),
        reconstruction: float = 45.0,
        features: float = 2.0,
        pool: PairPool | None = None,
        rollout: Rollout = Rollout(LastStep(), through=1000),
        steps: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, rollout=rollout, steps=steps, **kwargs)
        self.adversarial, self.penalty, self.distance = adversarial, penalty, distance
        self.reconstruction, self.features, self.pool = reconstruction, features, pool
        self.add_critic("discriminators", nn.ModuleList(discriminators))

    def drawn(self, batch: Batch) -> Drawn:
        """With the teacher's samples in place of data, and the noise that they come from, where there are pairs."""
        pairs = pairs_of(batch, self.pool, self.teacher, self.student)
        if pairs is None:
            return super().drawn(batch)
        noise, target, _, cond, y = pairs
        return Drawn(target, cond, y, self.guidance.draw(target), noise)

    def seen(self, x0: Tensor, cond: Cond) -> Tensor:
        """What discriminators and the distance look at: states as they are, unless a domain has its samples in another space."""
        return x0

    def judged(self, x: Tensor) -> list[list[Tensor]]:
        """The layers and logits of all discriminators."""
        return [critic(x) for critic in self.critics["discriminators"].children()]

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The reconstruction, and the losses and feature matching of all discriminators."""
        own, x0 = self.seen(reached.estimate.x0, drawn.cond), self.seen(drawn.x0, drawn.cond)
        with torch.no_grad():
            theirs = self.judged(x0)
        pairs = list(zip(theirs, self.judged(own), strict=True))
        zero = torch.zeros(len(x0), device=x0.device, dtype=x0.dtype)
        adversarial = sum((self.adversarial.student(f[-1], r[-1]) for r, f in pairs), zero)
        matching = sum((feature_matching(r[:-1], f[:-1]) for r, f in pairs), zero)
        return {
            "adversarial": adversarial.mean(),
            "features": self.features * matching.mean(),
            "reconstruction": self.reconstruction * self.distance(own, x0).mean(),
        }

    def critic_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The losses of all discriminators, and their penalties."""
        terms: Terms = {}
        own, x0 = self.seen(reached.estimate.x0, drawn.cond), self.seen(drawn.x0, drawn.cond)
        theirs = [found[-1] for found in self.judged(x0)]
        pairs = zip(theirs, self.judged(own), strict=True)
        terms["critic"] = torch.stack([self.adversarial.critic(r, f[-1]).mean() for r, f in pairs]).sum()
        if self.penalty is not None and self.done % self.penalty.every == 0:
            critics = self.critics["discriminators"].children()
            each = [self.penalty(lambda x, c=c: c(x)[-1], x0, r).mean() for c, r in zip(critics, theirs, strict=True)]
            terms["penalty"] = self.penalty.every * torch.stack(each).sum()
        return terms
