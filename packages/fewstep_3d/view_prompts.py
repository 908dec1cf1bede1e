"""Prompts that depend on the view, and Perp-Neg between them, against objects with several faces (arXiv:2304.04968).

    |az| < 90:  r = 1 - |az|/90   text r front + (1 - r) side     weights  front -F(fs; r),  side -F(sf; 1 - r)
    else        r = 2 - |az|/90   text r side + (1 - r) back      weights  front -F(fsb; r), side -F(sb; r)
    F(a, b, c; r) = a exp(-b r) + c,   fs = sf = (4, .5, -2.426),  sb = (1, .5, -.606),  fsb = (1, .5, .967)

Above 60 degrees of elevation: the overhead text, no negatives. Constants and arcs are threestudio's.
shapes: texts (L, D) of one prompt; azimuth, elevation (N,) in degrees
"""

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoise
from fewstep.distill.guidance import TeacherGuidance
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.guidance.perp_neg import PerpNeg, severity_weights
from fewstep.guidance.rule import Mixed

FS, SF, SB, FSB = (4.0, 0.5, -2.426), (4.0, 0.5, -2.426), (1.0, 0.5, -0.606), (1.0, 0.5, 0.967)
OVERHEAD = 60.0
TEXT, NEGATIVES, WEIGHTS, WANTED = "encoder_hidden_states", "perp_texts", "perp_weights", "perp_wanted"
ASIDE = (NEGATIVES, WEIGHTS, WANTED)  # for the guidance alone; networks are not told


def decay(constants: tuple[float, float, float], r: Tensor) -> Tensor:
    """F(a, b, c; r), at least 0."""
    a, b, c = constants
    return (a * torch.exp(-b * r) + c).clamp_min(0)


class ViewPrompts(nn.Module):
    """Embeddings of one object's prompt with "front view", "side view", "back view" and "overhead view", (L, D) each, and the null text.

    Raises:
        ValueError: embeddings of different shapes.
    """

    def __init__(self, front: Tensor, side: Tensor, back: Tensor, overhead: Tensor, null: Tensor) -> None:
        super().__init__()
        shapes = {tuple(x.shape) for x in (front, side, back, overhead, null)}
        if len(shapes) > 1 or front.ndim != 2:
            raise ValueError(f"prompts are five embeddings of one shape (L, D), not {sorted(shapes)}")
        self.texts: Tensor
        self.null: Tensor
        self.register_buffer("texts", torch.stack([front, side, back, overhead]))
        self.register_buffer("null", null)

    def at(self, azimuth: Tensor, elevation: Tensor) -> Cond:
        """text (N, L, D), negatives front, side and back (N, 3, L, D), their weights (N, 3) and the nearest view (N,)."""
        front, side, back, overhead = self.texts
        turn = (azimuth + 180).remainder(360) - 180
        u = turn.abs() / 90
        near = u < 1
        r = torch.where(near, 1 - u, 2 - u)[:, None, None]
        text = torch.where(near[:, None, None], r * front + (1 - r) * side, r * side + (1 - r) * back)
        r = r[:, 0, 0]
        on_front = torch.where(near, decay(FS, r), decay(FSB, r))
        on_side = torch.where(near, decay(SF, 1 - r), decay(SB, r))
        weights = -torch.stack([on_front, on_side, torch.zeros_like(r)], 1)
        high = elevation > OVERHEAD
        text = torch.where(high[:, None, None], overhead, text)
        weights = torch.where(high[:, None], torch.zeros_like(weights), weights)
        wanted = torch.where(u < 0.5, 0, torch.where(u < 1.5, 1, 2))
        negatives = self.texts[:3].expand(len(u), -1, -1, -1)
        return {TEXT: text, NEGATIVES: negatives, WEIGHTS: weights, WANTED: wanted}


class PerpNegGuidance(TeacherGuidance):
    """Perp-Neg of teachers that are told `ViewPrompts` and see one view.

    Raises:
        ValueError: a range of scales: it has one.
    """

    def __init__(self, low: float = 7.5, high: float = 7.5, told: bool = False) -> None:
        if low != high:
            raise ValueError(f"Perp-Neg has one guidance scale, not [{low}, {high}]")
        super().__init__(low, high, told)

    def teacher(self, teacher: Generator, cond: Cond, y: Tensor | None, w: Tensor) -> Denoise:
        """The teacher under its prompt, away from the other views across it. Raises ValueError where there are no view prompts."""
        if NEGATIVES not in cond:
            raise ValueError("Perp-Neg needs a teacher with view prompts")
        plain = {k: v for k, v in cond.items() if k not in ASIDE}
        texts = [plain[TEXT], teacher.unconditional(plain)[TEXT], *cond[NEGATIVES].unbind(1)[:2]]
        like = plain[TEXT].shape
        branches = [teacher.bind({**plain, TEXT: x.reshape(like)}, y) for x in texts]

        def guided(x: Tensor, t: float | Tensor) -> Estimate:
            weights = self.weights(teacher, cond, x, t)
            rule = PerpNeg(self.low, tuple(weights.to(x).unbind(1)[:2]))
            return Mixed(branches, rule, teacher.denoiser.path)(x, t)

        return guided

    def weights(self, teacher: Generator, cond: Cond, x: Tensor, t: float | Tensor) -> Tensor:
        """Of the negatives front, side and back at state x, (B, 3)."""
        return cond[WEIGHTS]


class AdaptivePerpNegGuidance(PerpNegGuidance):
    """Negatives weigh as much as the teacher now takes the render for their view (Instant3D's idea; the formula is ours).

        p = softmax over views of -|eps_v(x_t) - eps_mean(x_t)|^2 / temperature,   w_v <- w_v min(k p_v, 4), 0 for the wanted view

    The noise in x_t is not known to a guidance rule: the mean prediction of all views stands for it.
    k = 0 is classifier-free guidance.
    """

    def __init__(
        self, low: float = 7.5, high: float = 7.5, told: bool = False, k: float = 3.0, temperature: float = 0.01
    ) -> None:
        super().__init__(low, high, told)
        self.k, self.temperature = k, temperature

    def weights(self, teacher: Generator, cond: Cond, x: Tensor, t: float | Tensor) -> Tensor:
        """Three further evaluations."""
        plain = {k: v for k, v in cond.items() if k not in ASIDE}
        like = plain[TEXT].shape
        eps = [teacher.bind({**plain, TEXT: v.reshape(like)})(x, t).eps for v in cond[NEGATIVES].unbind(1)]
        errors = torch.stack([(e - sum(eps) / 3).square().flatten(1).mean(1) for e in eps], 1)
        return severity_weights(errors, cond[WANTED], cond[WEIGHTS].to(errors), self.k, self.temperature)
