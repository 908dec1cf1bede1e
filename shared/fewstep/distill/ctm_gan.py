"""CTM with its adversary: data against the student's jumps to the clean end (arXiv:2310.02279, eq. 11).

    fake       G(x_t, t -> 0),   x_t noised data at the times of the spans
    student    L_CTM + lambda L_DSM + lambda' loss.student(C(fake)),   lambda' as lambda, clipped to [.01, 10]
    critic     loss.critic(C(data), C(fake)) + penalty

The paper's critic looks at clean pictures through classifiers (StyleGAN-XL); here it has the teacher's layers, at the adversary's times. It joins
after `start` of the training, 1500 of the official code's iterations.
"""

from typing import Any, cast

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.discriminators import Adversary
from fewstep.distill.alternating import Drawn
from fewstep.distill.ctm import CTM
from fewstep.distill.judged import Judged
from fewstep.distill.rollout import Reached
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.jump import JumpGenerator
from fewstep.train.shell import Batch, Terms


class CTMGAN(Judged, CTM):
    """CTM with an adversary; the remaining arguments are those of `CTM` and of `Judged`, whose rollout is not used.

    Args:
        adversary: its weight tells only where lambda' is clipped.
        start: share of the training after which the student hears it; the critic learns from the beginning.
    Raises:
        ValueError: `start` outside of [0, 1].
    """

    def __init__(
        self, teacher: Generator, iterations: int, adversary: Adversary, start: float = 0.0, **kwargs: Any
    ) -> None:
        if not 0 <= start <= 1:
            raise ValueError(f"start is a share of the training in [0, 1], not {start}")
        super().__init__(teacher, iterations, adversary, **kwargs)
        self.start = start

    def reach(self, drawn: Drawn, cond: Cond) -> Reached:
        """What the critic learns on, without the student's graph: its jumps from noised data."""
        student, x0 = cast(JumpGenerator, self.student), drawn.x0
        path = student.denoiser.path
        t = self.spans(len(x0), path)[0][:, 0].to(x0.device)
        x_t, end = path.sample(x0, drawn.noise, t, drawn.y), torch.full_like(t, path.t_min)
        with torch.no_grad():
            fake = student.jump(x_t, t, end, cond, drawn.y)
        return Reached(x_t, t, Estimate(fake, drawn.noise), end)

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """CTM's terms, the adversary's among them."""
        return CTM.loss(self, batch)

    def further(self, x0: Tensor, x_t: Tensor, t: Tensor, cond: Cond, y: Tensor | None) -> Terms:
        """The adversary's term at CTM's own states."""
        if self.progress < self.start:
            return {}
        student, path = cast(JumpGenerator, self.student), self.teacher.denoiser.path
        fake = student.jump(x_t, t, torch.full_like(t, path.t_min), cond, y)
        own = {k: v for k, v in cond.items() if k not in self.student.denoiser.told}
        return {"adversarial": self.adversarial(fake, x0, own, y)}
