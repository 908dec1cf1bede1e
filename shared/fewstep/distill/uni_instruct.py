"""Uni-Instruct: an f-divergence of the data expanded along the diffusion into differences of scores (arXiv:2505.20755).

    D_f(q_0 || p_0) = int 1/2 g^2 E_p[ h(r) |s_q - s_p|^2 ] dt + D_f(q_T || p_T),     h(r) = r^2 f''(r),   r = q_t/p_t = exp(logit)

With u = h(r) (s_q - s_p) as a function of x_t, the gradient of an integrand has two parts:

    1. of 2 u(x_t) . (s_p - grad log q(x_t|x0)), through x0, x_t, r and both networks: how the student's score changes
    2. of (h - r h')(r) |s_q - s_p|^2 through x_t: how its law changes, also inside r

The paper's special cases are those of part 1: reverse KL (h = 1) is SIM and SiD with alpha = 1. For the forward KL (h = r), its best
divergence, part 2 is zero, so that part 1 is the whole gradient. `complete` adds part 2: reverse KL is then SiD with alpha = 1/2. (The public
code makes its ratio of the generator's loss; here it is the logit of the adversary, which sees x_t and t.)
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.discriminators import Adversary
from fewstep.discriminators.losses import per_sample
from fewstep.distill.alternating import Drawn
from fewstep.distill.f_distill import Divergence, ForwardKL, Ratio
from fewstep.distill.score_distillation import ScoreDistillation
from fewstep.distill.score_gradient import ByTeacherError, ScoreWeight
from fewstep.generator import Generator


def uni_instruct_loss(
    x0: Tensor,
    teacher: Tensor,
    fake: Tensor,
    r: Tensor,
    weight: Tensor,
    divergence: Divergence,
    complete: bool = False,
) -> Tensor:
    """weight mean( h(r) delta (D_psi - x0) + [(h - r h')(r) delta^2 / 2] ), delta = D_phi - D_psi, (B,); all with their graphs but the weight."""
    delta = teacher - fake
    h = divergence.h(r)
    loss = h * (delta * (fake - x0)).flatten(1).mean(1)
    if complete:
        loss = loss + (h - r * slope(divergence, r)) * delta.square().flatten(1).mean(1) / 2
    return weight.detach() * loss


def slope(divergence: Divergence, r: Tensor) -> Tensor:
    """h'(r), with its graph."""
    with torch.enable_grad():
        r = r if r.requires_grad else r.detach().requires_grad_(True)
        h = divergence.h(r)
        return torch.autograd.grad(h.sum(), r, create_graph=True)[0] if h.requires_grad else torch.zeros_like(r)


class UniInstruct(ScoreDistillation):
    """Uni-Instruct; the remaining arguments are those of `ScoreDistillation`.

    Args:
        adversary: whose logit is log r, by a loss such as `NonSaturating`; .01 of the score's term in the public code.
        divergence: f; complete: with the second part of the gradient.
        weight: of each sample.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        adversary: Adversary,
        divergence: Divergence = ForwardKL(),
        complete: bool = False,
        weight: ScoreWeight = ByTeacherError(),
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, adversary=adversary, **kwargs)
        self.divergence, self.complete, self.weight, self.ratio_of = divergence, complete, weight, Ratio()

    def match(self, x0: Tensor, x_t: Tensor, t: Tensor, teacher: Denoise, fake: Denoise, drawn: Drawn) -> Tensor:
        """uni_instruct_loss at x_t."""
        path, wanted, own = self.teacher.denoiser.path, teacher(x_t, t).x0, fake(x_t, t).x0
        self.see(own, wanted)
        r = self.ratio_of(per_sample(self.heads(self.fake.denoiser, x_t, t, drawn.cond, drawn.y)), t, path).to(x0)
        weight = self.weight(x0, wanted, t, path)
        return uni_instruct_loss(x0, wanted, own, r, weight, self.divergence, self.complete)
