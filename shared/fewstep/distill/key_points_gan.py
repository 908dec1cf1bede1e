"""Key points with their adversary: the student's own states at the key times against the teacher's (AccVideo, arXiv:2503.19462).

    k ~ U{0 .. K-1},   x'_{k+1} = the student's state after k + 1 of its own steps from noise, with the graph of the last one alone
    student   chord loss (key_points.py)  +  weight loss.student(C_{k+1}(x'_{k+1}, t_{k+1}))
    critic    loss.critic(C_{k+1}(x_{k+1}, t_{k+1}), C_{k+1}(x'_{k+1}, t_{k+1})) + penalty

C_k has heads of its own for each key time, on the frozen teacher's layers; x_{k+1} are the teacher's states, stored ones where batches
hold them. Only the chord knows which noise leads where: the adversary compares laws. The paper's training code is not published,
nor its weights; hinge losses are an assumption.
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.discriminators import Adversary
from fewstep.discriminators.adversary import Judge
from fewstep.discriminators.discriminator import Discriminator
from fewstep.discriminators.staged import StagedDiscriminator
from fewstep.distill.alternating import Drawn
from fewstep.distill.judged import JudgedStates
from fewstep.distill.key_points import KeyPoints
from fewstep.distill.line import step
from fewstep.distill.rollout import EachStep, Reached, Rollout
from fewstep.generator import Generator
from fewstep.train.shell import Batch, Terms


class KeyPointsGAN(JudgedStates, KeyPoints):
    """AccVideo; arguments are those of `KeyPoints` and of `JudgedStates`."""

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        adversary: Adversary,
        rollout: Rollout = Rollout(EachStep()),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, adversary, rollout=rollout, **kwargs)

    def build(self, teacher: Generator) -> Discriminator:
        """Heads for every time that a step ends at."""
        times = self.times[1:]
        return StagedDiscriminator(times, [super(KeyPointsGAN, self).build(teacher) for _ in times])

    def drawn(self, batch: Batch) -> Drawn:
        """With the teacher's trajectories (B, n + 1, ...) in place of data, conditions as the student is told them, and fresh noise."""
        states, cond, y = self.trajectories(batch)
        return Drawn(states, cond, y, self.guidance.draw(states), torch.randn_like(states[:, 0]))

    def reach(self, drawn: Drawn, cond: Cond) -> Reached:
        """The student at its own state, and the teacher's states where its step ends."""
        reached, states = self.rollout(self.student, drawn.noise, drawn.cond, drawn.y), drawn.x0
        k = (reached.s[:, None] - self.times.to(reached.s)).abs().argmin(1)
        return reached._replace(target=states[torch.arange(len(states), device=states.device), k])

    def judged(self, reached: Reached, drawn: Drawn) -> tuple[Judge, Tensor, Tensor]:
        """(the heads at t_{k+1}, x', x)."""
        s, y = reached.s, drawn.y
        own = step(self.student.denoiser.path, reached.x, reached.estimate.x0, reached.t, s, y)
        cond = {k: v for k, v in drawn.cond.items() if k not in self.student.denoiser.told}
        return Judge(self.heads, self.backbone, s, cond, y), own, reached.wanted

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The chord, and the adversary's term."""
        chord = self.chord(drawn.x0, drawn.cond, drawn.y).mean()
        return {"chord": chord, "adversarial": self.adversarial_at(reached, drawn)}
