"""DCM: consistency by two experts, each in its part of the trajectory (Dual-Expert Consistency Model, arXiv:2506.03123).

    nodes      s_k = q tau/(1 + (q - 1) tau),  tau = (k + 1)/n,  k = 0 ... n - 1;    semantic: k >= kappa, detail: the others
    g(x_s)     x_s + (e - s) u(x_s): straight to the end e of the part, s_(kappa-1) of the semantic one, the clean end of the detail one
    semantic   d( g(x_s), g' ) + coherence |Delta g - Delta g'|^2,   Delta over `gap` frames
    g'         sg g of the student after one Euler step of the guided teacher; the step itself where it ends the part

The semantic expert is trained first, with all its weights; `experts` makes the generator whose detail expert `DetailConsistency` (dcm_detail.py) then
trains. The official detail expert ends at its first level of noise, .0167 for q = 17, and its sampler goes on straight from there; here it ends clean
(`end` = 0), or there.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoiser
from fewstep.distances import Distance, ElementwiseHuber
from fewstep.distill.consistency import ConsistencyDistillation, EndPoint, aim
from fewstep.distill.intervals import Intervals
from fewstep.distill.line import step
from fewstep.distill.teacher_step import TeacherStep
from fewstep.generator import Generator
from fewstep.grids import Grid, Shifted
from fewstep.grids.base import remembered
from fewstep.nets.adapter import trainable
from fewstep.paths import Path
from fewstep.sampling import sample
from fewstep.solvers import DDIM
from fewstep.train.shell import Batch, Terms
from fewstep_video.distill.motion import Differences
from fewstep_video.nets.experts import OWN, TARGETS, Experts


@dataclass(frozen=True)
class Parts:
    """The range in two. grid, steps: the nodes (q = 17 is for 20 000 tokens, small clips want 1 to 5); kappa: nodes of the detail part.

    Raises:
        ValueError: unless 0 < kappa < steps and end is below the nodes.
    """

    grid: Grid = Shifted(17.0)
    steps: int = 50
    kappa: int = 35
    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.kappa < self.steps:
            raise ValueError(f"kappa is between 0 and {self.steps}, the number of nodes, not {self.kappa}")

    def times(self, path: Path) -> Tensor:
        """(steps + 1,) decreasing; the last one is `end`."""
        times = remembered(self.grid, path, self.steps).clone()
        times[-1] = path.t_min + self.end
        return times

    def boundary(self, path: Path) -> float:
        """s_(kappa-1): where the semantic part ends and the detail part begins."""
        return float(self.times(path)[self.steps - self.kappa])

    def above(self, path: Path) -> float:
        """s_kappa: the lowest node of the semantic part."""
        return float(self.times(path)[self.steps - self.kappa - 1])


@dataclass(frozen=True)
class Within(Intervals):
    """Neighbours of one part's nodes, each as likely."""

    parts: Parts = Parts()
    detail: bool = False

    def __call__(self, n: int, path: Path, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        times, split = self.parts.times(path), self.parts.steps - self.parts.kappa
        low, high = (split, self.parts.steps) if self.detail else (0, split)
        i = torch.randint(low, high, (n,))
        return times[i], times[i + 1]


def coherence(a: Tensor, b: Tensor, gap: int) -> Tensor:
    """Mean square of the difference of a's and b's changes over `gap` frames, (B,); 0 for clips that are no longer."""
    if a.shape[2] <= gap:
        return a.new_zeros(len(a))
    changes = Differences(gap)
    return (changes(a) - changes(b)).square().flatten(1).mean(1)


class SemanticConsistency(ConsistencyDistillation):
    """The first stage; the remaining arguments are those of `ConsistencyDistillation`, but for its intervals.

    Args:
        parts: of the range, the same in both stages.
        coherence: weight of the temporal term; gap: its frames.
        steps: of the student from the noisy end to the boundary, at validation.
    """

    sampler = DDIM()
    detail = False

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        parts: Parts = Parts(),
        coherence: float = 1.0,
        gap: int = 3,
        step: TeacherStep = TeacherStep(DDIM()),
        distance: Distance = ElementwiseHuber(1e-3),
        mu: float = 0.0,
        **kwargs: Any,
    ) -> None:
        within = Within(parts, self.detail)
        super().__init__(teacher, iterations, intervals=within, step=step, distance=distance, mu=mu, **kwargs)
        self.parts, self.coherence, self.gap = parts, coherence, gap

    def end(self, t: Tensor) -> Tensor:
        """The end of the part."""
        path = self.student.denoiser.path
        return torch.full_like(t, path.t_min + self.parts.end if self.detail else self.parts.boundary(path))

    def end_point(self, denoiser: Denoiser, cond: Cond, y: Tensor | None) -> EndPoint:
        """g."""
        bound = denoiser.bind(cond, y)
        return lambda x, t: step(denoiser.path, x, bound(x, t).x0, t, self.end(t), y)

    def loss(self, batch: Batch) -> Terms:
        """Consistency of the ends, and of their changes in time."""
        x0, cond, y = self.student.prepare(batch)
        w = self.guidance.draw(x0)
        x_t, t, x_s, s = self.states(x0, cond, y, w)
        told = self.guidance.student_cond(cond, w)
        own = self.end_point(self.student.denoiser, told, y)(x_t, t)
        wanted = aim(self.target_point(told, y), x_s, s, self.end(t))
        terms = {"consistency": self.distance(own, wanted).mean()}
        return terms | ({"coherence": self.changes(own, wanted)} if self.coherence else {})

    def changes(self, own: Tensor, wanted: Tensor) -> Tensor:
        """The temporal term, a scalar."""
        return self.coherence * coherence(own, wanted, self.gap).mean()

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The student at the boundary, after `steps` steps of equal numbers of nodes, beside the teacher through all nodes to there."""
        model = cast(Generator, model)
        x0, cond, y = model.prepare(batch)
        noise, w, path = torch.randn_like(x0), self.guidance.draw(x0), model.denoiser.path
        times = self.parts.times(path)[: self.parts.steps - self.parts.kappa + 1]
        few = times[torch.linspace(0, len(times) - 1, min(model.steps, len(times) - 1) + 1).round().long()]
        start, told = model.begin(noise, y), self.guidance.student_cond(cond, w)
        own = sample(model.denoiser.bind(told, y), start, path, DDIM(), few, y)
        wanted = sample(self.guidance.teacher(self.teacher, cond, y, w), start, path, DDIM(), times, y)
        return self.closeness(own, wanted)


def experts(
    semantic: Generator,
    parts: Parts = Parts(),
    rank: int = 128,
    scale: float = 2.0,
    targets: tuple[str, ...] = TARGETS,
    own: tuple[str, ...] = OWN,
) -> Generator:
    """The generator of both experts, the detail one as the semantic one is: what recipes name as the student of the second stage.

    Raises:
        ValueError: a path whose times are not what its network is told.
    """
    d = semantic.denoiser
    path = d.path
    at = torch.tensor([parts.boundary(path), parts.above(path)], dtype=torch.float64)
    low, high = d.prediction.label(at, path.coeffs(at, at)).tolist()
    d.net = Experts(d.net, low, high, rank, scale, targets, own)
    return trainable(semantic)
