"""Generators whose network knows both ends of a jump: G(x_t, t -> s), of which a denoiser is the case s = t.

    G(x, t -> s) = the DDIM step t -> s with x0 := g(x, t, s)

On EDM's path that is CTM's (s/t) x + (1 - s/t) g (arXiv:2310.02279, eq. 9), on a rectified flow MeanFlow's x - (t - s) u with
u = (x - g)/t (arXiv:2505.13447). G(x, t -> t) = x whatever the network does. It is told s as the scalar condition "s", on the scale of
its own time label.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoiser, label_dtype
from fewstep.estimate import Estimate
from fewstep.flow_map import sample_jumps
from fewstep.generator import Generator
from fewstep.grids import Grid
from fewstep.nets.scalars import with_scalars
from fewstep.paths import expand
from fewstep.sampling import Callback
from fewstep.solvers import DDIM
from fewstep.solvers.base import Solver


class JumpGenerator(Generator):
    """A denoiser whose network takes the condition "s"; `generate` jumps along the grid, with gamma sampling's fresh noise.

    Args:
        gamma: 0 deterministic jumps, 1 multistep consistency sampling (see `flow_map.sample_jumps`).
    """

    def __init__(self, denoiser: Denoiser, solver: Solver, grid: Grid, steps: int = 1, gamma: float = 0.0) -> None:
        super().__init__(denoiser, solver, grid, steps)
        self.gamma = gamma

    @classmethod
    def of(cls, teacher: Generator, gamma: float = 0.0) -> "JumpGenerator":
        """A copy of a teacher whose network is also told s: before training g(x, t, s) is the teacher's x0."""
        d = teacher.denoiser
        net = with_scalars(d.net, {"s": getattr(d.net, "time_scale", 1.0)})
        return cls(Denoiser(net, d.path, d.prediction), DDIM(), teacher.grid, 1, gamma)

    def estimate(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond | None = None, y: Tensor | None = None) -> Estimate:
        """g(x, t, s) as x0 and the eps that belongs to it; t and s: (B,)."""
        d = self.denoiser
        label = d.prediction.label(s, d.path.coeffs(s, s)).to(label_dtype(x))
        return d.bind({**(cond or {}), "s": label}, y)(x, t)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond | None = None, y: Tensor | None = None) -> Tensor:
        """G(x, t -> s): (B, ...) at times t: (B,) -> at times s: (B,)."""
        path, estimate = self.denoiser.path, self.estimate(x, t, s, cond, y)
        if y is None:
            return DDIM().step(path, x, estimate, t, s)
        b_t, b_s = (expand(path.schedule(v.double())[1], x) for v in (t, s))
        return DDIM().step(path, x - b_t * y, estimate, t, s) + b_s * y

    def generate(
        self,
        noise: Tensor,
        cond: Cond | None = None,
        y: Tensor | None = None,
        steps: int | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> Tensor:
        """noise -> data in jumps along the grid. A jump has no other solver and no estimate to call back about.

        Raises:
            ValueError: a solver or callbacks are given.
        """
        if solver is not None or tuple(callbacks):
            raise ValueError("a generator of jumps takes no other solver and no callbacks")
        path = self.denoiser.path

        def jump(x: Tensor, t: float, s: float) -> Tensor:
            t_, s_ = (torch.full((len(x),), v, dtype=torch.float64, device=x.device) for v in (t, s))
            return self.jump(x, t_, s_, cond, y)

        grid = self.grid(path, self.steps if steps is None else steps)
        return sample_jumps(jump, path.start(noise, y), path, grid, self.gamma, y, generator)
