"""Generators whose network knows both ends of a jump: G(x_t, t -> s), of which a denoiser is the case s = t.

    G(x, t -> s) = the DDIM step t -> s with x0 := g(x, t, s)

On EDM's path that is CTM's (s/t) x + (1 - s/t) g (arXiv:2310.02279, eq. 9), on a rectified flow MeanFlow's x - (t - s)
u with u = (x - g)/t (arXiv:2505.13447). G(x, t -> t) = x whatever the network does. It is told s as the scalar
condition "s", on the scale of its own time label.

A generator with a front end of its own needs a class of both: `class XJumps(JumpGenerator, X)`, whose constructor takes
the arguments of both; `JumpGenerator.of` finds it.
"""

import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.class_generator import ClassGenerator, Judge
from fewstep.denoiser import Cond, Denoiser, label_dtype
from fewstep.estimate import Estimate
from fewstep.flow_map import sample_jumps
from fewstep.generator import Generator
from fewstep.grids import Grid, Uniform
from fewstep.nets.scalars import with_scalars
from fewstep.paths import expand
from fewstep.sampling import Callback, Noise
from fewstep.solvers import DDIM
from fewstep.solvers.base import Solver, data_form
from fewstep.solvers.gamma import check_gamma


class JumpGenerator(Generator):
    """A denoiser whose network takes the condition "s"; `generate` jumps along the grid, by gamma sampling.

    Args:
        solver: not used, a jump has none; what other generators have it for is `gamma` here.
        gamma: 0 deterministic jumps, 1 multistep consistency sampling (see `flow_map.sample_jumps`).
        nu: guidance by SoundCTM's mixing (arXiv:2405.18503): nu G + (1 - nu) G_unconditional; 1: none, and one
            evaluation per jump.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver = DDIM(),  # noqa: B008
        grid: Grid = Uniform(),  # noqa: B008
        steps: int = 1,
        gamma: float = 0.0,
        nu: float = 1.0,
    ) -> None:
        super().__init__(denoiser, solver, grid, steps)
        check_gamma(gamma)
        self.gamma, self.nu = gamma, nu

    @classmethod
    def of(cls, teacher: Generator, gamma: float = 0.0, nu: float = 1.0) -> "JumpGenerator":
        """A copy of a teacher whose network is also told s: before training g(x, t, s) is the teacher's x0.

        Raises:
            ValueError: networks without scalar conditions; teachers with a front end that no class of jumps has.
        """
        teacher = copy.deepcopy(teacher)
        d = teacher.denoiser
        net = with_scalars(d.net, {"s": getattr(d.net, "time_scale", 1.0)})
        own: dict[str, Any] = {
            name: getattr(teacher, name) for name in list(inspect.signature(type(teacher).__init__).parameters)[1:]
        }
        own |= {"denoiser": Denoiser(net, d.path, d.prediction, d.told), "solver": DDIM(), "steps": 1}
        own |= {"gamma": gamma, "nu": nu}
        return cls._of_kind(type(teacher))(**own)

    @classmethod
    def _of_kind(cls, kind: type[Generator]) -> "type[JumpGenerator]":
        """The class of jumps with the front end of `kind`."""
        found = next((c for c in _with_subclasses(cls) if issubclass(c, kind)), None)
        if found is None:
            raise ValueError(
                f"no generator of jumps has the front end of {kind.__name__}: write a class of both, see jump.py"
            )
        return found

    def estimate(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond | None = None, y: Tensor | None = None) -> Estimate:
        """g(x, t, s) as x0 and the eps that belongs to it; t and s: (B,)."""
        return self.denoiser(x, t, self.told(s, x, cond), y)

    def told(self, s: Tensor, x: Tensor, cond: Cond | None = None) -> Cond:
        """cond with what the network is told about s: (B,), for states like x."""
        d = self.denoiser
        return {**(cond or {}), "s": d.prediction.label(s, d.path.coeffs(s, s)).to(label_dtype(x))}

    def jump(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond | None = None, y: Tensor | None = None) -> Tensor:
        """G(x, t -> s): (B, ...) at times t: (B,) -> at times s: (B,)."""
        path, x0 = self.denoiser.path, self.estimate(x, t, s, cond, y).x0
        t, s = t.double(), s.double()
        to_x, to_x0 = data_form(path, t, s)
        # At the clean end the step is 0/0: it stays.
        to_x, to_x0 = torch.where(t == s, 1.0, to_x), torch.where(t == s, 0.0, to_x0)
        jumped = expand(to_x, x) * x + expand(to_x0, x) * x0
        return jumped if y is None else jumped + expand(path.schedule(s)[1] - to_x * path.schedule(t)[1], x) * y

    def velocity(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond | None = None, y: Tensor | None = None) -> Tensor:
        """u(x, t, s) = a' x0 + b' y + s' eps of g: the velocity for s = t.

        On straight paths it is the average velocity, (x - G(x, t -> s))/(t - s).
        """
        g = self.estimate(x, t, s, cond, y)
        return self.denoiser.path.velocity(g.x0, g.eps, t, y)

    def generate(
        self,
        noise: Tensor,
        cond: Cond | None = None,
        y: Tensor | None = None,
        steps: int | None = None,
        solver: Solver | None = None,
        generator: Noise | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> Tensor:
        """noise -> data in jumps along the grid. A jump has no other solver and no estimate to call back about.

        Raises:
            ValueError: a solver or callbacks are given.
        """
        if solver is not None or tuple(callbacks):
            raise ValueError("a generator of jumps takes no other solver and no callbacks")
        path, cond = self.denoiser.path, cond or {}
        without = None if self.nu == 1.0 else {**cond, **self.unconditional(cond)}

        def jump(x: Tensor, t: float, s: float) -> Tensor:
            t_, s_ = (torch.full((len(x),), v, dtype=torch.float64, device=x.device) for v in (t, s))
            jumped = self.jump(x, t_, s_, cond, y)
            return jumped if without is None else torch.lerp(self.jump(x, t_, s_, without, y), jumped, self.nu)

        grid = self.grid(path, self.steps if steps is None else steps)
        return sample_jumps(jump, self.begin(noise, y, float(grid[0])), path, grid, self.gamma, y, generator)


class ClassJumps(JumpGenerator, ClassGenerator):
    """Jumps to images of classes, see `ClassGenerator`."""

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver = DDIM(),  # noqa: B008
        grid: Grid = Uniform(),  # noqa: B008
        steps: int = 1,
        shape: Sequence[int] = (1, 8, 8),
        judge: Judge | None = None,
        gamma: float = 0.0,
        nu: float = 1.0,
    ) -> None:
        super().__init__(denoiser, solver, grid, steps, gamma, nu)
        self.shape, self.judge = tuple(shape), judge


def jumps(teacher: Generator, gamma: float = 0.0, nu: float = 1.0) -> JumpGenerator:
    """`JumpGenerator.of` for recipes: a student with the weights of a teacher."""
    return JumpGenerator.of(teacher, gamma, nu)


def jump_student(teacher: Generator, student: Generator | None) -> JumpGenerator:
    """The student of a method that learns jumps: the one given, or one made of the teacher.

    Raises:
        ValueError: a student that does not jump.
    """
    if student is None:
        return copy.deepcopy(teacher) if isinstance(teacher, JumpGenerator) else JumpGenerator.of(teacher)
    if not isinstance(student, JumpGenerator):
        raise ValueError(  # noqa: TRY004 (a wrong choice of student)
            f"a {type(student).__name__} does not jump; the student is a JumpGenerator, as fewstep.jump.jumps makes"
        )
    return student


def _with_subclasses(cls: type[JumpGenerator]) -> "Iterator[type[JumpGenerator]]":
    yield cls
    for sub in cls.__subclasses__():
        yield from _with_subclasses(sub)
