"""Reward feedback: the reward of the student's x0 at a random late step, its gradient through that step alone.

    x_{t_k} = the student's own sampling without gradient,   k of the last n steps
    L = relu(margin - r(f(x_{t_k}, t_k)))  +  hold c(t_k) |f(x_{t_k}, t_k) - sg f_ref(x_{t_k}, t_k)|^2

ReFL (arXiv:2304.05977) on a few-step student, as in Hyper-SD (arXiv:2404.13686), where the reward is relu'd at a margin. A reward without limit is
followed to where it is highest and nothing is left of the data: ReFL adds the pre-training loss, which makes few-step students blurred; `hold`
keeps x0 near the reference's at the same state instead and is in neither paper; with c the signal-to-noise ratio it is the
divergence of the samplers' paths. n and the margins are published for their own rewards alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.distill.rollout import Exit, RandomStep, Rollout
from fewstep.distill.weighting import Even, Weighting
from fewstep.generator import Generator
from fewstep.preference.aligner import Aligner
from fewstep.preference.rewards import Reward
from fewstep.solvers import GammaSampling
from fewstep.train.shell import Batch, Terms


@dataclass(frozen=True)
class LateStep(Exit):
    """One of the last n steps for the whole batch, each as likely, and the same on all ranks."""

    n: int = 2

    def __call__(self, n: int, steps: int) -> Tensor:
        late = min(self.n, steps)
        return RandomStep()(n, late) + steps - late


def feedback_loss(worth: Tensor, margin: float | None) -> Tensor:
    """relu(margin - r), or -r without a margin; (B,) of rewards (B,)."""
    return -worth if margin is None else (margin - worth).relu()


class RewardFeedback(Aligner):
    """The remaining arguments are those of `Aligner`.

    Args:
        rollout: to the step whose x0 is judged; through > 0 passes the gradient further back.
        margin: rewards above it are as good as it; None: no limit.
        hold: factor of the mean square distance to the reference's x0; weighting: c.
        weight: of the reward's term.
    """

    sampler = GammaSampling(1.0)

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        reward: Reward,
        rollout: Rollout = Rollout(LateStep()),
        margin: float | None = None,
        hold: float = 0.0,
        weighting: Weighting = Even(),
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, reward, **kwargs)
        self.rollout, self.margin, self.hold = rollout, margin, hold
        self.weighting, self.weight = weighting, weight

    def loss(self, batch: Batch) -> Terms:
        """The feedback at the exit of the rollout, and what holds the student there."""
        x0, cond, y = self.student.prepare(batch)
        x, t, estimate = self.rollout(self.student, torch.randn_like(x0), cond, y)[:3]
        worth = self.reward(estimate.x0, cond)
        terms = {"reward": self.weight * feedback_loss(worth, self.margin).mean()}
        self.values["train/reward_of_x0"] = worth.detach().mean()
        if self.hold:
            with torch.no_grad():
                before = self.reference.denoiser(x, t, cond, y).x0
            path, square = self.reference.denoiser.path, (estimate.x0 - before).square().flatten(1).mean(1)
            c = self.weighting(t, torch.full_like(t, path.t_min), path).to(square)
            terms["hold"] = self.hold * (c * square).mean()
        return terms
