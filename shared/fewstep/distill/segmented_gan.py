"""Segmented consistency with its adversary: it compares the ends of a segment, noised again within it (PCM, arXiv:2405.18407).

    own = G(x_t, t -> e),   target = sg G^-(x_s, s -> e)    of segmented.py,    t' ~ U[e, where the segment begins]
    fake, real = (a_t'/a_e) x_e + sqrt(s_t'^2 - (a_t' s_e/a_e)^2) xi    of own and of target
    student   d(own, target) + loss.student(C(fake, t')),     critic   loss.critic(C(real, t'), C(fake, t')) + penalty

Both sides have the same law where the student is consistent, so that the adversary moves no fixed point of the distillation (that is its
difference from LADD, whose real samples are data). One pair of states serves student and critic. Configurations:

    PCM     `BoundedHinge`, weight .1, `ratio` 2 (its code trains student and critic in turn)
    TSCD    `SegmentStages((8, 4, 2, 1))` (arXiv:2404.13686); how much its two terms weigh by the number of segments is not published,
            here it is the same in all stages
"""

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.discriminators.adversary import Judge
from fewstep.distill.alternating import Drawn
from fewstep.distill.consistency_gan import compared
from fewstep.distill.judged import JudgedStates
from fewstep.distill.line import step
from fewstep.distill.rollout import Reached
from fewstep.distill.segmented import SegmentedConsistency
from fewstep.paths import Path, expand
from fewstep.train.shell import Batch, Terms


def diffused_state(path: Path, x: Tensor, e: Tensor, t: Tensor, xi: Tensor, y: Tensor | None = None) -> Tensor:
    """The path's own noising from x: (B, ...) at e on to t >= e, (B,); xi standard. The law of x_t given x_e; e before t_max."""
    (a_e, b_e, s_e), (a_t, b_t, s_t) = (path.schedule(v.double()) for v in (e, t))
    kept = a_t / a_e
    if y is not None:
        x = x - expand(b_e, x) * y
    x_t = expand(kept, x) * x + expand((s_t.square() - (kept * s_e).square()).clamp_min(0).sqrt(), x) * xi
    return x_t if y is None else x_t + expand(b_t, x) * y


class SegmentedGAN(JudgedStates, SegmentedConsistency):
    """PCM and TSCD with their adversaries; arguments are those of `SegmentedConsistency` and of `JudgedStates`, whose rollout is not used."""

    def reach(self, drawn: Drawn, cond: Cond) -> Reached:
        """The student at x_t, and the target from x_s."""
        return compared(self, drawn, cond)

    def own(self, reached: Reached, y: Tensor | None) -> Tensor:
        """G(x_t, t -> e)."""
        t = reached.t
        return step(self.student.denoiser.path, reached.x, reached.estimate.x0, t, self.end(t), y)

    def judged(self, reached: Reached, drawn: Drawn) -> tuple[Judge, Tensor, Tensor]:
        """(the heads at t', fake, real)."""
        path, y, e = self.student.denoiser.path, drawn.y, self.end(reached.t)
        begin = self.segments.at(self.progress).begin(reached.t, path)
        t, ends = e + (begin - e) * torch.rand_like(e), (self.own(reached, y), reached.wanted)
        fake, real = (diffused_state(path, x, e, t, torch.randn_like(x), y) for x in ends)
        return Judge(self.heads, self.backbone, t, drawn.cond, y), fake, real

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The distance of both ends, and the adversary's term."""
        loss = self.distance(self.own(reached, drawn.y), reached.wanted)
        consistency = self.weighted(loss, reached.t, reached.s)
        return {"consistency": consistency.mean(), "adversarial": self.adversarial_at(reached, drawn)}
