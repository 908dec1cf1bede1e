"""SpeedUpNet (arXiv:2312.08887): a branch beside a frozen network, for guidance in one evaluation and for few steps.

    D^w = D_c + (w - 1)(D_c - D_n)                                    teacher, negative condition n
    L_offset = d( f(x_t, t, c, n, w), sg D^w(x_t, t) )                one evaluation in place of two
    L_multi  = d( f's k steps t_j -> t_{j+1}, sg D^w's m > k steps )  in x, at the anchor times t_j that both pass

Both moves start from x_{t_j} = path.sample(x0, eps, t_j). Negative conditions are those of other samples of the
batch, or the empty one. The two losses pull apart where long steps err, and the second lets the branch make up for
it. Their balance, and how the paper draws its negatives, are not published as code.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoise
from fewstep.distances import Distance, SquaredL2
from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.guided import matching_loss
from fewstep.distill.segments import Segments
from fewstep.distill.teacher_step import TeacherStep
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.nets.adapter import check_copy, trainable
from fewstep.nets.negative_branch import NEGATIVE, NegativeBranch
from fewstep.paths import Path, expand
from fewstep.per_sample import sample_each
from fewstep.solvers import DDIM
from fewstep.times import TimeSampler, UniformTimes
from fewstep.train.shell import Batch, Terms


def multi_step_loss(
    f: Denoise,
    teacher: Denoise,
    path: Path,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    step: TeacherStep,
    steps: int = 1,
    distance: Distance = SquaredL2(),
    y: Tensor | None = None,
) -> Tensor:
    """d(x_s of f's `steps` DDIM steps, even in t, sg x_s of the teacher's), (B,); differentiable through all of f's."""
    share = torch.arange(steps + 1, dtype=torch.float64, device=t.device) / steps
    times = t.double()[:, None] + (s.double() - t.double())[:, None] * share
    return distance(sample_each(f, x_t, path, DDIM(), times, y), step(teacher, path, x_t, t, s, y))


class NegativeGuidance(TeacherGuidance):
    """Guidance against negative conditions: `cond` has them as negative_...; the unconditional ones where it has none.

    empty: the share of samples whose negative is the unconditional one; the others have that of another sample.
    """

    def __init__(self, low: float = 1.0, high: float = 1.0, empty: float = 0.25) -> None:
        super().__init__(low, high, told=True)
        if not 0 <= empty <= 1:
            raise ValueError(f"empty is a share, allowed are 0 to 1, got {empty}")
        self.empty = empty

    def draw_negatives(self, generator: Generator, cond: Cond) -> Cond:
        """cond with a negative_... beside everything that the unconditional branch has differently."""
        unconditional = generator.unconditional(cond)
        changed = {k: v for k, v in unconditional.items() if v is not cond[k]}
        n = len(next(iter(changed.values())))
        others, empty = torch.randperm(n), torch.rand(n) < self.empty
        return {**cond} | {
            NEGATIVE + k: torch.where(_beside(empty.to(v.device), v), v, cond[k][others.to(v.device)])
            for k, v in changed.items()
        }

    def teacher(self, teacher: Generator, cond: Cond, y: Tensor | None, w: Tensor) -> Denoise:
        """D_n + w (D_c - D_n); two evaluations per call."""
        own = {k: v for k, v in cond.items() if not k.startswith(NEGATIVE)}
        given = {k.removeprefix(NEGATIVE): v for k, v in cond.items() if k.startswith(NEGATIVE)}
        negative = {**teacher.unconditional(own), **given}
        positive, away = teacher.denoiser.bind(own, y), teacher.denoiser.bind(negative, y)

        def guided(x: Tensor, t: float | Tensor) -> Estimate:
            c, n, scale = positive(x, t), away(x, t), expand(w, x)
            return n.map(lambda n, c: torch.lerp(n, c, scale), c)

        return guided


class SpeedUpNet(Distiller):
    """Train a branch beside the frozen teacher network.

    Args:
        branch: branch(x, t, out, w, negative_...) -> shape of out, 0 at the start (nets/negative_branch.py).
        guidance: the range of w, and the negatives.
        times: of the first loss; segments: whose boundaries are the anchors of the second.
        step: the teacher's move from one anchor to the next; substeps: of the student.
        offset, multi: weights of the two losses.
    """

    sampler = DDIM()

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        branch: nn.Module,
        guidance: NegativeGuidance = NegativeGuidance(1.0, 5.0),
        times: TimeSampler = UniformTimes(),
        segments: Segments = Segments(4),
        step: TeacherStep = TeacherStep(DDIM(), 8),
        substeps: int = 1,
        distance: Distance = SquaredL2(),
        offset: float = 1.0,
        multi: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, **kwargs)
        self.negatives, self.times, self.segments, self.step, self.substeps = guidance, times, segments, step, substeps
        self.distance, self.weights = distance, (offset, multi)
        check_copy(self.student.denoiser.net, self.teacher.denoiser.net)
        # One set of weights: the frozen network is the teacher's own.
        self.student.denoiser.net = NegativeBranch(self.teacher.denoiser.net, branch.train())
        self.guide(guidance)
        trainable(self.student)

    def loss(self, batch: Batch) -> Terms:
        """Both losses, each at times of its own."""
        x0, cond, y = self.student.prepare(batch)
        path, w = self.teacher.denoiser.path, self.guidance.draw(x0)
        cond = self.negatives.draw_negatives(self.teacher, cond)
        f = self.student.denoiser.bind(self.guidance.student_cond(cond, w), y)
        teacher = self.guidance.teacher(self.teacher, cond, y, w)
        t = self.times(len(x0), path).to(x0.device)
        offset = matching_loss(f, teacher, path.sample(x0, torch.randn_like(x0), t, y), t, self.distance)
        anchors = self.segments.boundaries(path)
        j = torch.randint(len(anchors) - 1, (len(x0),))
        t, s = anchors[j].to(x0.device), anchors[j + 1].to(x0.device)
        x_t = path.sample(x0, torch.randn_like(x0), t, y)
        multi = multi_step_loss(f, teacher, path, x_t, t, s, self.step, self.substeps, self.distance, y)
        return {"offset": self.weights[0] * offset.mean(), "multi": self.weights[1] * multi.mean()}


def _beside(mask: Tensor, v: Tensor) -> Tensor:
    """(B,) as (B, 1, ..., 1) beside v: (B, ...)."""
    return mask.reshape(-1, *[1] * (v.ndim - 1))
