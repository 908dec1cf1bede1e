"""Autoguidance (arXiv:2406.02507): away from a worse version of the same model. 1 NFE of each model per step.

    x0 = x0_weak + cfg (x0_good - x0_weak)          both with the same conditions

The weak model is smaller, trained less, or both; unlike dropping the condition, this does not push towards the
condition's modes.
"""

from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.guidance.guide import Branch, Model
from fewstep.guidance.rule import Mixed, Rule
from fewstep.paths import Path


class Autoguidance:
    """Any rule over (good, weak); the models may predict different things, but on one path.

    Args:
        denoiser: the good model.
        weak: the bad one.
        rule: usually CFGRule(cfg); Interval, Rescale, APG apply as they do to CFG.
    """

    def __init__(self, denoiser: Model, weak: Model, rule: Rule) -> None:
        if denoiser.path != weak.path:
            raise ValueError(f"both models need one path, got {denoiser.path} and {weak.path}")
        self.denoiser, self.weak, self.rule = denoiser, weak, rule

    @property
    def path(self) -> Path:
        """The models' path."""
        return self.denoiser.path

    def bind(self, cond: Cond | None = None, y: Tensor | None = None) -> Mixed:
        """The guided callable (x, t) -> Estimate."""
        return Mixed((Branch(self.denoiser, cond, y), Branch(self.weak, cond, y)), self.rule, self.path)
