"""Consistency trajectory models: jumps from any time to any other, by soft consistency (arXiv:2310.02279).

    estimate   G(x_t, t -> s)
    target     sg G(x_u, u -> s),   x_u = the teacher's k steps t -> u from x_t,   t > u >= s
    L_CTM      d( G^-(estimate, s -> 0), sg G^-(target, s -> 0) ),   G^- the frozen average
    L_DSM      |out - target|^2 of the denoiser g(x, t, t), in units of the prediction (EDM's weight for EDM's)
    L          L_CTM + lambda L_DSM + further terms

lambda = |grad L_CTM| / (|grad L_DSM| + 1e-4) of the last layer's weights, clipped: the terms pull equally. As in the
official code the inner jump of the target is the student's own (the paper writes the average everywhere), k is drawn
once per batch, and the grid's clean end is among the s. Sampled by gamma sampling (`flow_map`). The adversarial part of
the paper is a further term: ctm_gan.py.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.distances import Distance, PseudoHuber, within
from fewstep.distill.base import Distiller
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.jump_times import TeacherSpans
from fewstep.distill.target import Target
from fewstep.generator import Generator
from fewstep.jump import JumpGenerator, jump_student
from fewstep.null_conditions import drop_conditions
from fewstep.per_sample import sample_each
from fewstep.solvers import Heun
from fewstep.solvers.base import Solver
from fewstep.times import HalfLogNormalTimes, TimeSampler
from fewstep.train.denoising import denoising_loss
from fewstep.train.shell import Batch, Terms

# (x, t, s) -> the state at s of the trajectory through x at t; (B, ...), times (B,).
Jump = Callable[[Tensor, Tensor, Tensor], Tensor]
# (x, s) -> where states at times s are compared.
Push = Callable[[Tensor, Tensor], Tensor]


def ctm_loss(
    jump: Jump, inner: Jump, push: Push, x_t: Tensor, t: Tensor, x_u: Tensor, u: Tensor, s: Tensor, distance: Distance
) -> Tensor:
    """d(push(jump(x_t, t, s), s), sg push(inner(x_u, u, s), s)), (B,). Dropout draws the same masks for both."""
    with torch.no_grad(), torch.random.fork_rng(devices=[x_t.device] if x_t.is_cuda else []):
        wanted = push(inner(x_u, u, s), s)
    return distance(push(jump(x_t, t, s), s), wanted)


def last_layer(net: nn.Module) -> Tensor:
    """The weights of the last linear or convolution layer that is trained, in the order of registration.

    Raises:
        ValueError: networks without one.
    """
    kinds = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
    weights = [m.weight for m in net.modules() if isinstance(m, kinds) and m.weight.requires_grad]
    if not weights:
        raise ValueError(
            f"{type(net).__name__} has no linear or convolution layer that is trained, whose gradients could balance"
        )
    return weights[-1]


def gradient_norm(loss: Tensor, weight: Tensor) -> Tensor:
    """|d loss / d weight|; the graph stays."""
    return torch.autograd.grad(loss, weight, retain_graph=True)[0].norm()


class CTM(Distiller):
    """CTM; `SoundCTM` changes where states are compared, and how.

    Args:
        student: made of the teacher unless given.
        spans: the times; teacher_solver: of the teacher's steps.
        distance: at the clean end; LPIPS in the paper.
        guidance: of the teacher; drop: share of samples without conditions.
        denoising: lambda's factor (0: no such term); times: of that term.
        mu: decay of the average, > 0, because what pushes is frozen.
    Raises:
        ValueError: mu = 0, students that do not jump.
    """

    # Smallest and largest balancing factors: of L_DSM and of further terms.
    clip, clip_further = (0.0, 1e4), (0.01, 10.0)

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        student: Generator | None = None,
        spans: TeacherSpans = TeacherSpans(),
        teacher_solver: Solver = Heun(),
        distance: Distance = PseudoHuber(),
        guidance: TeacherGuidance = TeacherGuidance(),
        drop: float = 0.0,
        denoising: float = 1.0,
        times: TimeSampler = HalfLogNormalTimes(),
        mu: float = 0.999,
        **kwargs: Any,
    ) -> None:
        if mu == 0:
            raise ValueError(
                "CTM pushes states through a frozen average of the student: its decay mu is in (0, 1), not 0"
            )
        super().__init__(teacher, iterations, student=jump_student(teacher, student), **kwargs)
        self.spans, self.teacher_solver, self.distance, self.drop = spans, teacher_solver, distance, drop
        self.denoising, self.times = denoising, times
        self.guide(guidance)
        self.target = Target(cast(JumpGenerator, self.student), mu)

    def loss(self, batch: Batch) -> Terms:
        """Soft consistency, denoising and further terms, balanced."""
        student = cast(JumpGenerator, self.student)
        x0, cond, y = student.prepare(batch)
        cond, _ = drop_conditions(student, cond, x0, self.drop)
        w = self.guidance.draw(x0)
        told, teacher = self.guidance.student_cond(cond, w), self.guidance.teacher(self.teacher, cond, y, w)
        path = student.denoiser.path
        grid, s = (v.to(x0.device) for v in self.spans(len(x0), path))
        t, u = grid[:, 0], grid[:, -1]
        x_t = path.sample(x0, torch.randn_like(x0), t, y)
        with torch.no_grad():
            x_u = sample_each(teacher, x_t, path, self.teacher_solver, grid, y)
        jump, inner = (lambda x, t, s, net=net: net.jump(x, t, s, told, y) for net in (student, self.inner()))
        each = ctm_loss(jump, inner, self.push(told, y), x_t, t, x_u, u, s, self.measure(s, cond, y))
        terms = {"consistency": each.mean()}
        weight, norm = last_layer(student.denoiser.net), None
        others = {k: (v, self.clip_further) for k, v in self.further(x0, x_t, t, told, y).items()}
        if self.denoising:
            others["denoising"] = self.denoising * self.denoise(x0, told, y), self.clip
        for name, (term, (low, high)) in others.items():
            norm = gradient_norm(terms["consistency"], weight) if norm is None else norm
            terms[name] = (norm / (gradient_norm(term, weight) + 1e-4)).clamp(low, high) * term
        return terms

    def inner(self) -> JumpGenerator:
        """Whose jump the target is."""
        return cast(JumpGenerator, self.student)

    def push(self, cond: Cond, y: Tensor | None) -> Push:
        """To the clean end, by the frozen average."""
        net = self.target.net
        return lambda x, s: net.jump(x, s, torch.full_like(s, net.denoiser.path.t_min), cond, y)

    def measure(self, s: Tensor, cond: Cond, y: Tensor | None) -> Distance:
        """The distance of what was pushed from times s, with the teacher's conditions at hand."""
        return within(self.distance, self.student.mask(cond))

    def denoise(self, x0: Tensor, cond: Cond, y: Tensor | None) -> Tensor:
        """L_DSM, a scalar: g(x, t, t) against the data."""
        student = cast(JumpGenerator, self.student)
        t = self.times(len(x0), student.denoiser.path).to(x0.device)
        told, mask = student.told(t, x0, cond), student.mask(cond)
        return denoising_loss(student.denoiser, x0, torch.randn_like(x0), t, told, y, mask).mean()

    def further(self, x0: Tensor, x_t: Tensor, t: Tensor, cond: Cond, y: Tensor | None) -> Terms:
        """Scalars to be balanced and added, such as a discriminator's loss on G(x_t, t -> 0); none here."""
        return {}

    def after_step(self) -> None:
        self.target.update()
