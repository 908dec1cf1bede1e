"""Sequences that are generated block by block, each block given the blocks before it (CausVid, arXiv:2412.07772; Self-Forcing, 2506.08009).

    p(x) = prod_k p(x_k | x_<k),     x_k = the sampler's end from noise_k, by the denoiser given x_<k

A generator of such sequences binds its denoiser to what is there already by `continued`: here the finished blocks are the condition `past`; a
network that caches their keys and values overrides it, and adds those of the last block to the conditions that it gave for the one before.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoiser
from fewstep.generator import Generator
from fewstep.grids import Grid
from fewstep.sampling import Callback
from fewstep.solvers.base import Solver


class CausalGenerator(Generator):
    """noise (B, ...) -> sequence (B, ...), in blocks along an axis.

    Args:
        denoiser: of one block; its network takes `past`, the finished blocks, none at first.
        size: of a block along the axis (frames, or numbers of a flat state); axis: 1 for (B, D), 2 for (B, C, F, H, W).
    """

    def __init__(
        self, denoiser: Denoiser, solver: Solver, grid: Grid, steps: int = 1, size: int = 1, axis: int = 1
    ) -> None:
        super().__init__(denoiser, solver, grid, steps)
        self.size, self.axis = size, axis

    def blocks(self, x: Tensor) -> tuple[Tensor, ...]:
        """x cut along the axis.

        Raises:
            ValueError: a length that is no multiple of `size`.
        """
        if x.shape[self.axis] % self.size:
            raise ValueError(f"a sequence of {x.shape[self.axis]} is not made of blocks of {self.size}")
        return x.split(self.size, self.axis)

    def joined(self, blocks: Iterable[Tensor]) -> Tensor:
        """The blocks as one sequence."""
        return torch.cat([*blocks], self.axis)

    def continued(self, cond: Cond, past: Tensor) -> Cond:
        """Conditions of the next block; cond: those of the block before it, which are the caller's at first. past: (B, ...) all finished blocks."""
        return {**cond, "past": past}

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
        """noise: (B, ...) of the whole sequence -> (B, ...), one block after the other."""
        past, callbacks, told = noise.narrow(self.axis, 0, 0), [*callbacks], cond or {}
        for block in self.blocks(noise):
            told = self.continued(told, past)
            past = self.joined((past, super().generate(block, told, y, steps, solver, generator, callbacks)))
        return past


class PastPadded(nn.Module):
    """A network of flat sequences as one of their blocks: net([past, x_k, 0]) with the number k as its label, of which block k is kept.

    Args:
        net: (B, D), (B,), label (B,) -> (B, D), such as an MLP with D/size classes; size: of a block.
    """

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    @property
    def dim(self) -> int:
        """D."""
        return int(self.net.dim)  # pyright: ignore[reportArgumentType]

    @property
    def scalars(self) -> dict[str, float]:
        """Those of the network."""
        return getattr(self.net, "scalars", {})

    def forward(self, x: Tensor, t: Tensor, past: Tensor, **cond: Any) -> Tensor:
        """x: (B, size) and past: (B, k size) -> (B, size); or x: (B, D) and past: (B, D), every block given those before it in `past`."""
        if x.shape[1] == self.size:
            return self._block(x, t, past, cond)
        each = range(0, x.shape[1], self.size)
        return torch.cat([self._block(x[:, i : i + self.size], t, past[:, :i], cond) for i in each], 1)

    def _block(self, x: Tensor, t: Tensor, past: Tensor, cond: dict[str, Any]) -> Tensor:
        done = past.shape[1]
        rest = x.new_zeros(len(x), self.dim - done - x.shape[1])
        number = torch.full((len(x),), done // self.size, dtype=torch.long, device=x.device)
        whole = self.net(torch.cat([past, x, rest], 1), t, label=number, **cond)
        return whole[:, done : done + x.shape[1]]
