"""f-distill: distribution matching for any f-divergence, by the ratio of densities that a discriminator knows (arXiv:2502.15681).

    D_f(q_t || p_t) = E_p f(r),   r = q_t/p_t (teacher over student) = exp(logit) of the discriminator at the same x_t and t
    dL/dx0 = h(r) g,   h(r) = f''(r) r^2,   g the gradient of DMD

    reverse KL 1    forward KL r    Jensen-Shannon r/(1 + r)    squared Hellinger sqrt(r)/2    Jeffreys 1 + r    softened 1/(1 + r)    Neyman 1/r

Stabilisers of the official code (NVlabs/FastGen): logits within +-10, r within [.1, 20], r divided by its running mean in each of ten bins
of t, and h by its mean over the batch, both over all processes. The discriminator is the adversary's, on layers of the fake score, and
needs a loss whose best logit is log r (`NonSaturating`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Denoise
from fewstep.discriminators import Adversary
from fewstep.discriminators.losses import per_sample
from fewstep.distill.alternating import Drawn
from fewstep.distill.dmd import DMD, dmd_loss
from fewstep.generator import Generator
from fewstep.paths import Path


@dataclass(frozen=True)
class Divergence(ABC):
    """h(r) = f''(r) r^2 for r > 0, elementwise."""

    @abstractmethod
    def h(self, r: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """f = -log r: DMD."""

    def h(self, r: Tensor) -> Tensor:
        return torch.ones_like(r)


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """f = r log r."""

    def h(self, r: Tensor) -> Tensor:
        return r


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """f = r log r - (r + 1) log((r + 1)/2): twice the Jensen-Shannon divergence; the paper's choice."""

    def h(self, r: Tensor) -> Tensor:
        return r / (1 + r)


@dataclass(frozen=True)
class SquaredHellinger(Divergence):
    """f = (1 - sqrt r)^2."""

    def h(self, r: Tensor) -> Tensor:
        return r.sqrt() / 2


@dataclass(frozen=True)
class Jeffreys(Divergence):
    """f = (r - 1) log r: forward and reverse KL together."""

    def h(self, r: Tensor) -> Tensor:
        return 1 + r


@dataclass(frozen=True)
class SoftenedReverseKL(Divergence):
    """f = (r + 1) log((r + 1)/(2 r)): twice the Kullback-Leibler divergence of the mean of both laws to the teacher's."""

    def h(self, r: Tensor) -> Tensor:
        return 1 / (1 + r)


@dataclass(frozen=True)
class Neyman(Divergence):
    """f = (1 - r)^2 / (2 r)."""

    def h(self, r: Tensor) -> Tensor:
        return 1 / r


class Ratio(nn.Module):
    """r = exp(logit), clamped and divided by its running mean among samples in the same of `bins` parts of the range of t; part of checkpoints.

    decay: of the running means, which the first samples of a bin begin.
    """

    means: Tensor

    def __init__(self, bins: int = 10, decay: float = 0.99) -> None:
        super().__init__()
        self.bins, self.decay = bins, decay
        self.register_buffer("means", torch.zeros(bins))

    def forward(self, logit: Tensor, t: Tensor, path: Path) -> Tensor:
        """logit, t: (B,) -> (B,), with the graph of the logit."""
        r = logit.float().clamp(-10, 10).exp().clamp(0.1, 20)
        part = ((t - path.t_min) / (path.t_max - path.t_min) * self.bins).long().clamp(0, self.bins - 1)
        found = torch.zeros(2, self.bins, device=r.device).index_add_(
            1, part, torch.stack([r.detach(), torch.ones_like(r)])
        )
        found = shared(found)
        now = torch.where(found[1] > 0, found[0] / found[1].clamp_min(1), self.means)
        self.means.copy_(torch.where(self.means > 0, torch.lerp(now, self.means, self.decay), now))
        return r / self.means[part]


def shared(v: Tensor) -> Tensor:
    """The sum over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(v)
    return v


def normalised(h: Tensor) -> Tensor:
    """h divided by its mean over the batches of all processes, (B,)."""
    total = shared(torch.stack([h.sum(), h.new_tensor(float(len(h)))]).detach())
    return h * (total[1] / total[0])


class FDistill(DMD):
    """f-distill; the remaining arguments are those of `DMD`.

    Args:
        divergence: of the teacher's noised law to the student's.
        adversary: the paper's weight is .001, and it is not optional.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        adversary: Adversary,
        divergence: Divergence = JensenShannon(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, adversary=adversary, **kwargs)
        self.divergence, self.ratio_of = divergence, Ratio()

    def match(self, x0: Tensor, x_t: Tensor, t: Tensor, teacher: Denoise, fake: Denoise, drawn: Drawn) -> Tensor:
        """DMD's loss times h(r), whose mean over the batch is 1."""
        path = self.teacher.denoiser.path
        loss, own, wanted = dmd_loss(x0, x_t, t, teacher, fake, path, self.weight)
        self.see(own, wanted)
        with torch.no_grad():
            logit = per_sample(self.heads(self.fake.denoiser, x_t, t, drawn.cond, drawn.y))
            h = normalised(self.divergence.h(self.ratio_of(logit, t, path)))
        return loss * h.to(loss)
