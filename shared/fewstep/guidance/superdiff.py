"""SuperDiff (arXiv:2412.17762): one sample from M models, as their union or intersection. M NFE per step.

Reverse SDE with a mixed score, dt > 0, f = a'/a, g^2 the path's (likelihood.py), S_i the scores:

    dz = -(f z - g^2 sum_i k_i S_i) dt + g sqrt(dt) xi
    d log q_i = D f dt + <dz + f z dt, S_i> - (g^2/2)|S_i|^2 dt

    Or    k = softmax(T log q + l)                      samples of either model
    And   k with all d log q_i equal and sum k = 1      samples that all models find equally likely
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.guidance.rule import forward_prepare
from fewstep.likelihood import ito_change, sde
from fewstep.paths import Path

# The noise of a step: a generator, or a function of the step's number.
StepNoise = torch.Generator | Callable[[int], Tensor]


class Superposed(NamedTuple):
    """x: (B, ...); log_q: (M, B) change of each model's log density since the start; kappa: (n, M, B) weights used."""

    x: Tensor
    log_q: Tensor
    kappa: Tensor


class Superposition(ABC):
    """How M models are weighed at a step."""

    @abstractmethod
    def kappa(self, scores: Tensor, log_q: Tensor, drift: float, noise: Tensor) -> Tensor:
        """(M, B) weights, sum 1.

        scores: (M, B, D); log_q: (M, B) so far; drift: g^2 dt; noise: (B, D) = g sqrt(dt) xi of this step.
        """


@dataclass(frozen=True)
class Or(Superposition):
    """softmax(temperature log q + bias): a sample follows the likelier model. bias: one per model, or ()."""

    temperature: float = 1.0
    bias: tuple[float, ...] = ()

    def kappa(self, scores: Tensor, log_q: Tensor, drift: float, noise: Tensor) -> Tensor:
        bias = log_q.new_tensor(self.bias)[:, None] if self.bias else 0.0
        return torch.softmax(self.temperature * log_q + bias, 0)


@dataclass(frozen=True)
class And(Superposition):
    """Keeps all log q_i - log q_j constant; unbounded where scores nearly agree (hundreds at the noisy end).

    With D_i = S_i - mean S, k = 1/M + delta, sum delta = 0, the M conditions are the linear system

        g^2 dt sum_j <D_i, D_j> delta_j = (g^2 dt/2)(|S_i|^2 - mean |S|^2) - <g^2 dt mean S + noise, D_i>

    whose smallest solution is taken, so equal scores get equal weights. clip: bound on |delta|, inf in the paper.
    """

    clip: float | None = None

    def kappa(self, scores: Tensor, log_q: Tensor, drift: float, noise: Tensor) -> Tensor:
        mean = scores.mean(0)
        d = scores - mean
        gram = torch.einsum("ibd,jbd->bij", d, d)
        square = scores.square().sum(2)
        right = drift / 2 * (square - square.mean(0)) - ((drift * mean + noise) * d).sum(2)
        # Zero: differences at the level of rounding, and the vector of equal delta (always).
        eps = torch.finfo(scores.dtype).eps
        zero = (16 * eps) ** 2 * square.amax(0) + 1e4 * eps * gram.diagonal(dim1=1, dim2=2).sum(1)
        delta = torch.einsum("bij,jb->ib", torch.linalg.pinv(gram, atol=zero, hermitian=True), right) / drift
        return 1 / len(scores) + (delta if self.clip is None else delta.clamp(-self.clip, self.clip))


def superdiff(
    models: Sequence[Denoise],
    x: Tensor,
    path: Path,
    grid: Tensor,
    mixing: Superposition,
    generator: StepNoise | None = None,
    y: Tensor | None = None,
) -> Superposed:
    """Euler-Maruyama from x at grid[0] to grid[-1].

    Args:
        models: M bound denoisers on one path.
        x: (B, ...), real.  grid: (n + 1,) decreasing times, a(t) and s(t) > 0 at all but the last.
        mixing: `Or` or `And`.
        generator: source of the noise, drawn on its device.
        y: (B, ...), on anchored paths.
    """
    times = grid.double().tolist()
    for model in models:
        forward_prepare(model, tuple(times[:-1]), x)
    b = path.schedule(grid.double())[1].tolist()
    z = x if y is None else x - b[0] * y
    log_q, kappas = x.new_zeros(len(models), len(x)), []
    for n, (t, end) in enumerate(pairwise(times)):
        f, g2, s = sde(path, t)
        dt = t - end
        state = z if y is None else z + b[n] * y
        scores = torch.stack([model(state, t).eps.flatten(1) for model in models]) / -s
        noise = (g2 * dt) ** 0.5 * _noise(x, n, generator).flatten(1)
        kappa = mixing.kappa(scores, log_q, g2 * dt, noise)
        flat = z.flatten(1)
        dz = -dt * f * flat + g2 * dt * (kappa[..., None] * scores).sum(0) + noise
        log_q = log_q + ito_change(flat, dz, scores, f, g2, dt)
        z = (flat + dz).reshape(x.shape)
        kappas.append(kappa)
    return Superposed(z if y is None else z + b[-1] * y, log_q, torch.stack(kappas))


def _noise(x: Tensor, n: int, source: StepNoise | None) -> Tensor:
    if source is not None and not isinstance(source, torch.Generator):
        return source(n)
    device = x.device if source is None else source.device
    return torch.randn(x.shape, dtype=x.dtype, device=device, generator=source).to(x.device)
