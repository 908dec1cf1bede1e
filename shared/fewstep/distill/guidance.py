"""Guidance of the teacher inside a loss: one scale, or one drawn per sample, of which the student may be told.

    D^w = D_u + w (D_c - D_u),    w ~ U[low, high]

The unconditional branch is `Generator.unconditional`. A student that is told w has it as the scalar condition "w" of its network.
"""

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoise
from fewstep.generator import Generator
from fewstep.sampling import sample


class TeacherGuidance:
    """w uniform in [low, high] (fixed where they are equal; 1 is no guidance).

    No dataclass: recipes name its subclasses, and a parameter typed as a dataclass makes that very class of whatever a recipe names.

    Args:
        told: the student gets w as the condition "w": it then samples at any w in the range with one evaluation per step.
    Raises:
        ValueError: high < low.
    """

    def __init__(self, low: float = 1.0, high: float = 1.0, told: bool = False) -> None:
        if high < low:
            raise ValueError(f"guidance is drawn from [low, high], got [{low}, {high}]")
        self.low, self.high, self.told = low, high, told

    def draw(self, x: Tensor) -> Tensor:
        """(B,) scales for states like x, float32 on its device; random numbers are drawn only where the scale is."""
        if self.low == self.high:
            return torch.full((len(x),), self.low, device=x.device)
        return self.low + (self.high - self.low) * torch.rand(len(x), device=x.device)

    def teacher(self, teacher: Generator, cond: Cond, y: Tensor | None, w: Tensor) -> Denoise:
        """The guided teacher with these conditions; one evaluation per call where no guidance can be drawn, else two."""
        return teacher.bind(cond, y, 1.0 if self.low == self.high == 1.0 else w)

    def generate(self, teacher: Generator, noise: Tensor, cond: Cond, y: Tensor | None, w: Tensor) -> Tensor:
        """Samples of the guided teacher from noise, as `Generator.generate` makes them of the unguided one."""
        if self.low == self.high == 1.0:
            return teacher.generate(noise, cond, y)
        path = teacher.denoiser.path
        grid = teacher.grid(path, teacher.steps)
        start = teacher.begin(noise, y, float(grid[0]))
        return sample(self.teacher(teacher, cond, y, w), start, path, teacher.solver, grid, y)

    def student_cond(self, cond: Cond, w: Tensor) -> Cond:
        """The student's conditions: with w where it is told."""
        return {**cond, "w": w} if self.told else cond
