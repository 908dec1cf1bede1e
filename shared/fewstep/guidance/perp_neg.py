"""Perp-Neg (arXiv:2304.04968): negatives act only across the wanted direction. 2 + n NFE for n negatives.

    D = E_c - E_u,  D_i = E_i - E_u,   perp(D_i) = D_i - <D_i, D>/max(<D, D>, 1e-6) D          (of eps)
    E = E_u + cfg (D + sum_i w_i perp(D_i)),   w_i <= 0

Branches: conditional, unconditional, negative 1, ..., negative n.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.guidance.inner import along, per_sample
from fewstep.guidance.rule import Branches, Mix, Rule, weighted
from fewstep.guidance.schedules import Scale, weight


@dataclass(frozen=True)
class PerpNeg(Rule):
    """weights: w_i <= 0 of each negative, a number or one per sample (B,); negatives of the number 0 are not evaluated.

    Adaptive Perp-Neg has `severity_weights(...).unbind(1)` for weights.
    """

    cfg: Scale
    weights: tuple[float | Tensor, ...] = (-1.0,)

    def __post_init__(self) -> None:
        if any(bool((torch.as_tensor(w) > 0).any()) for w in self.weights):
            raise ValueError(f"weights of negatives are <= 0, got {self.weights}")

    def begin(self) -> Mix:
        return self.mix

    def mix(self, at: Branches) -> Estimate:
        """The guided estimate."""
        used = {i: w for i, w in enumerate(self.weights, 2) if isinstance(w, Tensor) or w != 0.0}
        c, u, *negatives = at(0, 1, *used)
        d, cfg = c.eps - u.eps, weight(self.cfg, at.t, at.x)
        k = [along(n.eps - u.eps, d, least=1e-6) for n in negatives]
        # D_i enters with cfg w_i, D with cfg (1 - sum w_i k_i), E_u with the rest: the same numbers for x0 and eps.
        on_negatives = [cfg * per_sample(w, at.x) for w in used.values()]
        on_c = cfg - sum(w * k for w, k in zip(on_negatives, k, strict=True))
        return weighted([c, u, *negatives], [on_c, 1 - on_c - sum(on_negatives), *on_negatives])


def severity_weights(
    errors: Tensor, wanted: Tensor, weights: Tensor, k: float = 1.0, temperature: float = 1.0, most: float = 4.0
) -> Tensor:
    """Adaptive Perp-Neg: negatives weigh as much as the model now believes in them. (B, V).

        p = softmax(-errors/temperature),   w_v <- w_v min(k p_v, most),   0 for the wanted view

    Instant3D (arXiv:2311.08403) scales the weights by the severity of the multi-face problem without giving a formula;
    this one is ours: k = 0 is CFG, and a view with p = 1 has its plain Perp-Neg weight at k = 1.

    Args:
        errors: (B, V) denoising errors of the current rendering under the prompt of each view, |eps_v - eps|^2.
        wanted: (B,) index of the view that is wanted.
        weights: (V,) or (B, V) plain Perp-Neg weights, <= 0.
    """
    scale = (k * torch.softmax(-errors / temperature, 1)).clamp(0, most)
    return (scale * weights).scatter(1, wanted[:, None], 0.0)
