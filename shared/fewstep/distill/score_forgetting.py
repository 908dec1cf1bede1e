"""Score forgetting distillation: a one-step student that has unlearnt a class (arXiv:2409.11219).

SiD with two streams of conditions. Where the student is asked for the class to forget, c_f, the teacher answers for another one:

    remain   D_phi(x_t, c),    D_psi(x_t, c)             c != c_f
    forget   D_phi(x_t, c_o),  D_psi(x_t, c_f)           c_o the override
"""

from typing import Any

import torch

from fewstep.denoiser import Cond, Denoise
from fewstep.distill.alternating import Drawn
from fewstep.distill.sid import SiD
from fewstep.generator import Generator
from fewstep.train.shell import Batch


class ScoreForgetting(SiD):
    """SiD that replaces a class; the remaining arguments are those of `SiD`.

    Args:
        forget, override: the labels c_f and c_o.
        share: of a batch in the forgetting stream; the paper weighs both streams alike.
        warm_up: share of the training over which it grows to that from 0.
    Raises:
        ValueError: the same label twice, or a share outside of (0, 1).
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        forget: int,
        override: int,
        share: float = 0.5,
        warm_up: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if forget == override or not 0 < share < 1:
            raise ValueError(
                f"forget one label for another, in a share of (0, 1); got {forget}, {override} and {share}"
            )
        super().__init__(teacher, iterations, **kwargs)
        if self.adversary is not None:
            raise ValueError(
                "score forgetting asks for other labels than those of the data: an adversary would see them beside it"
            )
        self.forget, self.override, self.share, self.warm_up = forget, override, share, warm_up

    def drawn(self, batch: Batch) -> Drawn:
        """The first of the batch ask for c_f, none of the others does."""
        drawn = super().drawn(batch)
        label = drawn.cond["label"].clone()
        ready = min(self.progress / self.warm_up, 1.0) if self.warm_up else 1.0
        n = round(self.share * ready * len(label))
        remain = label[n:]
        classes = int(getattr(self.student.denoiser.net, "classes", 0))
        others = (remain + torch.randint_like(remain, 1, classes)) % classes  # any class but the own one
        label[n:] = torch.where(remain == self.forget, others, remain)
        label[:n] = self.forget
        return drawn._replace(cond={**drawn.cond, "label": label})

    def scores(self, drawn: Drawn) -> tuple[Denoise, Denoise]:
        """The teacher answers for c_o where it is asked for c_f."""
        _, fake = super().scores(drawn)
        teacher = self.guidance.teacher(self.teacher, self.asked(drawn.cond), drawn.y, drawn.w)
        return teacher, fake

    def asked(self, cond: Cond) -> Cond:
        """c_o for c_f, at validation too."""
        label = cond["label"]
        return {**cond, "label": torch.where(label == self.forget, self.override, label)}
