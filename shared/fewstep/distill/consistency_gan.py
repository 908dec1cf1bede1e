"""Consistency distillation with an adversary: data against the ends of trajectories that the student sees (SCott, arXiv:2403.01505).

    own = f(x_t, t),   target = sg f^-(x_s, s)    of consistency.py; for SCott x_s comes by several SDE steps of the guided teacher
    student   w(t, s) d(own, target) + weight loss.student(C(own))
    critic    loss.critic(C(x0), C(own)) + penalty

Under an SDE the target is a mean, which the adversary sharpens. The paper's critic is the teacher with adapters of its own, told time and
text; here it has heads on the frozen teacher's layers (discriminators/adversary.py), which is told both.
"""

from fewstep.denoiser import Cond
from fewstep.distill.alternating import Drawn
from fewstep.distill.consistency import ConsistencyDistillation, aim
from fewstep.distill.judged import Judged
from fewstep.distill.rollout import Reached
from fewstep.train.shell import Batch, Terms


def compared(method: ConsistencyDistillation, drawn: Drawn, cond: Cond) -> Reached:
    """The student at x_t, and the target from x_s; cond: what the student is told."""
    x0, own, y, w, _ = drawn
    x_t, t, x_s, s = method.states(x0, own, y, w)
    wanted = aim(method.target_point(cond, y), x_s, s, method.end(t))
    return Reached(x_t, t, method.student.denoiser(x_t, t, cond, y), s, wanted)


class ConsistencyGAN(Judged, ConsistencyDistillation):
    """CD, LCM or SCott with an adversary; arguments are those of `ConsistencyDistillation` and of `Judged`, whose rollout is not used."""

    def reach(self, drawn: Drawn, cond: Cond) -> Reached:
        """The student at noised data."""
        return compared(self, drawn, cond)

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The distance of both ends, and the adversary's term."""
        own, (real, cond, y, _, _) = reached.estimate.x0, drawn
        loss = self.weighted(self.distance(own, reached.wanted), reached.t, reached.s)
        return {"consistency": loss.mean(), "adversarial": self.adversarial(own, real, cond, y)}
