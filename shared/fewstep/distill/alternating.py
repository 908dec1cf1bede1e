"""The shell of methods that train a student against critics (a fake score, a discriminator), each with an optimiser of its own.

    every iteration           samples of the student; the critics learn on them
    every ratio-th, the first  the student learns too, on the same samples, before the critics have moved

All gradients of an iteration come from one backward: the student's terms are computed while the critics give no gradient, the critics'
terms on detached samples. So nothing has to be zeroed in between, and no parameter is reached twice. With ratio > 1 the student's are not reached
in every iteration: DDP needs `strategy: ddp_find_unused_parameters_true`.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.distill.base import Distiller
from fewstep.distill.rollout import Reached, Rollout, frozen
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.nets.adapter import trainable
from fewstep.train.shell import Batch, Terms, scheduled


class Drawn(NamedTuple):
    """What an iteration works on: data (for its shape, and for critics that look at it), conditions, anchor, guidance scales (B,), and the
    noise (B, ...) that the student starts from."""

    x0: Tensor
    cond: Cond
    y: Tensor | None
    w: Tensor
    noise: Tensor


class AlternatingDistiller(Distiller):
    """Student against critics. Methods add critics by `add_critic` in their constructors, and write the two kinds of terms.

    Args:
        rollout: how samples of the student are made.
        ratio: iterations per update of the student (two time scales, arXiv:2405.14867). `iterations` counts all of them.
        critic_optimizer: of each critic; the student's unless given.
    Raises:
        ValueError: ratio < 1.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        rollout: Rollout = Rollout(),
        ratio: int = 1,
        critic_optimizer: OptimizerCallable | None = None,
        **kwargs: Any,
    ) -> None:
        if ratio < 1:
            raise ValueError(f"the student is updated in every ratio-th iteration, ratio >= 1, not {ratio}")
        super().__init__(teacher, iterations, **kwargs)
        self.rollout, self.ratio = rollout, ratio
        self.critic_optimizer = critic_optimizer or self.optimizer
        self.critics = nn.ModuleDict()

    def sharded(self) -> list[nn.Module]:
        """All but the critics, whose `requires_grad` changes within an iteration: FSDP2 would not hear of it."""
        return [network for network in super().sharded() if network is not self.critics]

    def add_critic(self, name: str, critic: nn.Module) -> None:
        """A network that is trained beside the student, by its own optimiser."""
        self.critics[name] = trainable(critic.train())

    def trained(self) -> dict[str, nn.Module]:
        return super().trained() | dict(self.critics.items())

    def turn(self, name: str) -> bool:
        return name != "student" or self.done % self.ratio == 0

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The student's, then the critics'."""
        own, critics = super().configure_optimizers(), self.critics.values()
        wanted = ([p for p in critic.parameters() if p.requires_grad] for critic in critics)
        return [own, *(scheduled(self.critic_optimizer(parameters)) for parameters in wanted)]

    def loss(self, batch: Batch) -> Terms:
        """The student's terms in its turn, and the critics' terms."""
        drawn, mine = self.drawn(batch), self.turn("student")
        with torch.set_grad_enabled(torch.is_grad_enabled() and mine):
            reached = self.reach(drawn, self.guidance.student_cond(drawn.cond, drawn.w))
            x0, eps = reached.estimate.x0, reached.estimate.eps
        terms: Terms = {}
        if mine:
            with frozen(self.critics):
                terms = self.student_terms(reached, drawn, batch)
        held = reached._replace(x=reached.x.detach(), estimate=Estimate(x0.detach(), eps.detach()))
        return terms | self.critic_terms(held, drawn, batch)

    def drawn(self, batch: Batch) -> Drawn:
        """The batch in the space of the path, with guidance scales."""
        x0, cond, y = self.student.prepare(batch)
        return Drawn(x0, cond, y, self.guidance.draw(x0), torch.randn_like(x0))

    def reach(self, drawn: Drawn, cond: Cond) -> Reached:
        """The student's estimates that this iteration is about, here those of its rollout; cond: what the student is told."""
        return self.rollout(self.student, drawn.noise, cond, drawn.y)

    @abstractmethod
    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """Scalars whose sum the student minimises; critics give no gradient to themselves here."""

    @abstractmethod
    def critic_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """Scalars whose sum the critics minimise, on the same samples of the student without its graph."""

    def closeness(self, own: Tensor, wanted: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Also `energy`, the energy distance between both sets of samples as means of (B,): these methods match laws, not trajectories."""
        return super().closeness(own, wanted, mask) | {"energy": energy_terms(own, wanted)}


def energy_terms(x: Tensor, y: Tensor) -> Tensor:
    """(N,) whose mean is the energy distance of x and y (metrics/energy_distance.py), pairs (x_i, y_i) of one noise left out.

    2/(N - 1) sum_{j != i} |x_i - y_j| - 1/(N - 1) sum_{j != i} (|x_i - x_j| + |y_i - y_j|), x and y: (N, ...).
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    cross, own, theirs = torch.cdist(x, y), torch.cdist(x, x), torch.cdist(y, y)
    total = 2 * (cross.sum(1) - cross.diagonal()) - own.sum(1) - theirs.sum(1)
    return total / max(len(x) - 1, 1)
