"""DisBack: distribution matching along a path of teachers, from one that knows the untrained student back to the real one (arXiv:2408.16991).

    degradation    a copy of the teacher learns the first student's samples by denoising; states of it are kept on the way
    backtracking   DMD whose teacher is one kept state after the other, from the last but one, and at the end the teacher itself

Early on the scores of student and teacher would otherwise differ most where neither was ever trained. The fake score begins as the last state,
which is the score of the first student.
"""

import copy
from typing import Any

from torch import nn

from fewstep.denoiser import Denoise
from fewstep.distill.alternating import Drawn
from fewstep.distill.dmd import DMD
from fewstep.distill.rollout import Reached
from fewstep.generator import Generator
from fewstep.train.shell import Batch, Terms


class DisBack(DMD):
    """DMD with a degradation before it; the remaining arguments are those of `DMD`, and `iterations` counts both.

    Args:
        degradation: iterations of the first stage; kept: states on the way, evenly spread, the last one among them.
        backtracking: share of the second stage in which kept states are the teacher, under its guidance; each as long.
    Raises:
        ValueError: no iterations left for the second stage, more states than iterations of the first, guidance of states that have no
            unconditional branch (drop = 0).
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        degradation: int = 200,
        kept: int = 4,
        backtracking: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if not 1 <= kept <= degradation < iterations:
            raise ValueError(f"1 <= kept <= degradation < iterations, not {kept}, {degradation} and {iterations}")
        super().__init__(teacher, iterations, **kwargs)
        if self.adapters is not None:
            raise ValueError("the fake score of DisBack is itself degraded: it is a network of its own, not adapters")
        if not self.guidance.low == self.guidance.high == 1.0 and self.drop == 0:
            raise ValueError("the states of DisBack are guided as its teacher is, for which they need drop > 0")
        self.degradation, self.kept, self.backtracking = degradation, kept, backtracking
        self.states = nn.ModuleList(copy.deepcopy(teacher) for _ in range(kept))  # frozen, as it is

    def sharded(self) -> list[nn.Module]:
        """The states are whole, as the fake score is."""
        return [network for network in super().sharded() if network is not self.states]

    def turn(self, name: str) -> bool:
        """The student waits until the first stage is over."""
        return super().turn(name) and (name != "student" or self.done >= self.degradation)

    def after_step(self) -> None:
        """Keep a state where one is due."""
        done = self.done + 1
        due = [round(self.degradation * (i + 1) / self.kept) for i in range(self.kept)]
        if done in due:
            self.states[due.index(done)].load_state_dict(self.fake.state_dict())

    def stage(self) -> int | None:
        """Which kept state is the teacher; None: the real one."""
        share = (self.done - self.degradation) / ((self.iterations - self.degradation) * self.backtracking or 1)
        step = int(share * (self.kept - 1))
        return None if self.backtracking == 0 or step >= self.kept - 1 else self.kept - 2 - step

    def scores(self, drawn: Drawn) -> tuple[Denoise, Denoise]:
        """The teacher of this stage, and the fake score."""
        teacher, fake = super().scores(drawn)
        stage = self.stage()
        if stage is None:
            return teacher, fake
        state = self.states[stage]
        assert isinstance(state, Generator)
        return self.guidance.teacher(state, drawn.cond, drawn.y, drawn.w), fake

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        terms = super().student_terms(reached, drawn, batch)
        stage = self.stage()
        self.values["train/stage"] = -1.0 if stage is None else float(stage)
        return terms
